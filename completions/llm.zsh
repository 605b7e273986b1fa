# Completion of llm-run, llm-doctor and llm-record in zsh; the module loads it. By hand, in a checkout:
#
#     . completions/llm.zsh
#
# What can stand where is said by bin/_llm/complete.py, for every shell.
typeset -g _llm_completions=${${(%):-%x}:a:h}

_llm_complete() {
    emulate -L zsh
    local offset
    local -a answer
    answer=("${(@f)$(sh "$_llm_completions/../bin/_llm/tool.sh" complete "$service" \
        "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    case $answer[1] in
        words) compadd -- "${(@)answer[2,-1]}" ;;
        files) compset -P '*=' ; _files ;;
        command*)
            offset=${answer[1]#command }
            shift $offset words
            (( CURRENT -= offset ))
            _normal ;;
    esac
}

# Whoever loads modules in ~/.zshrc may do so before compinit: then it is done before the next prompt.
_llm_register() {
    emulate -L zsh
    precmd_functions=(${precmd_functions:#_llm_register})
    (( $+functions[compdef] )) && compdef _llm_complete llm-run llm-doctor llm-record
    return 0
}

_llm_forget() {
    emulate -L zsh
    (( $+precmd_functions )) && precmd_functions=(${precmd_functions:#_llm_register})
    (( $+functions[compdef] )) && compdef -d llm-run llm-doctor llm-record
    unfunction _llm_complete _llm_register _llm_forget
    unset _llm_completions
}

if (( $+functions[compdef] )); then
    compdef _llm_complete llm-run llm-doctor llm-record
else
    typeset -ga precmd_functions
    precmd_functions+=(_llm_register)
fi
