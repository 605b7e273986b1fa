# Sourced by the programs in bin/ with $llm_bin or $llm_home set: finds a Python >= 3.9 and starts
# _llm/main.py with it.
# shellcheck shell=sh
#
# -I: whatever conda, PYTHONPATH or ~/.local say, the library sees the standard library and itself.
# -S, for the system's own Pythons: site and the .pth files of packages take a third of the start,
# and a broken one prints its traceback. Elsewhere a Python may need site to find its library.

llm_start() {
    llm_program=$1
    shift
    llm_main=${llm_bin:-$llm_home/bin}/_llm/main.py
    if [ "$llm_program" = llm-doctor ]; then # it says what is kept out
        # With --job the copies on the nodes inherit what the first one has kept out.
        export LLM_DOCTOR_KEPT_OUT="${LLM_DOCTOR_KEPT_OUT:+$LLM_DOCTOR_KEPT_OUT }${LD_PRELOAD:+LD_PRELOAD }${LD_AUDIT:+LD_AUDIT }${LD_LIBRARY_PATH:+LD_LIBRARY_PATH}"
    fi
    # A library that a user preloads into programs must not break this one; the program itself does
    # not get it either (isolation).
    unset LD_PRELOAD LD_AUDIT

    if [ -z "${LLM_PYTHON:-}" ]; then
        # The system's own Pythons carry their version in their name. They are what they say, so no
        # process is spent on asking, and no shim, module or environment on PATH can break them.
        for llm_version in 14 13 12 11 10 9; do
            if [ -x "/usr/bin/python3.$llm_version" ]; then
                unset LD_LIBRARY_PATH
                exec "/usr/bin/python3.$llm_version" -I -S "$llm_main" "$llm_program" "$@"
            fi
        done
    fi
    for llm_python in ${LLM_PYTHON:+"$LLM_PYTHON"} python3.14 python3.13 python3.12 python3.11 \
        python3.10 python3.9 python3 /usr/bin/python3; do
        # A shim (pyenv) may exist and not start; a system's python3 may be 3.6.
        if command -v "$llm_python" >/dev/null 2>&1 &&
            "$llm_python" -I -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
            exec "$llm_python" -I "$llm_main" "$llm_program" "$@"
        fi
        if [ "$llm_python" = "${LLM_PYTHON:-}" ]; then
            echo "$llm_program: LLM_PYTHON=$LLM_PYTHON is no Python >= 3.9" >&2
            echo "  fix: unset LLM_PYTHON, or set it to the path of a newer one" >&2
            exit 2
        fi
    done
    echo "$llm_program: no Python >= 3.9 found" >&2
    echo "  why: this program needs one on the host; the newest here may be the system's 3.6" >&2
    echo "  fix: module load python, or install one (python3.11 on EL8, python311 on SLES 15)," >&2
    echo "       or set LLM_PYTHON=/path/to/python3" >&2
    exit 2
}
