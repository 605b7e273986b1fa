# shellcheck shell=bash
# Completion of llm-run, llm-doctor and llm-record in bash; the module loads it. By hand, in a checkout:
#
#     . completions/llm.bash
#
# What can stand where is said by bin/_llm/complete.py, for every shell.
[ -n "${BASH_VERSION:-}" ] || return 0
_llm_completions=$(CDPATH='' cd -- "${BASH_SOURCE[0]%/*}" && pwd)

_llm_complete() {
    local line offset answer=()
    COMPREPLY=()
    while IFS= read -r line; do answer+=("$line"); done < <(
        sh "$_llm_completions/../bin/_llm/tool.sh" complete "${1##*/}" \
            "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    case ${answer[0]:-} in
        words) COMPREPLY=("${answer[@]:1}") ;;
        files) compopt -o default ;; # bash's own: it knows ~ and quotes
        command*)
            offset=${answer[0]#command }
            if declare -F _comp_command_offset >/dev/null; then
                _comp_command_offset "$offset"
            elif declare -F _command_offset >/dev/null; then
                _command_offset "$offset"
            elif [ "$offset" -eq "$COMP_CWORD" ]; then
                while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -c -- "$2")
            else
                compopt -o default
            fi
            ;;
    esac
}

_llm_forget() {
    complete -r llm-run llm-doctor llm-record 2>/dev/null
    unset -f _llm_complete _llm_forget
    unset -v _llm_completions
}

complete -F _llm_complete llm-run llm-doctor llm-record
