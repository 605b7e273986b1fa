#!/bin/sh
# Make the environment of the checkers: venv.sh FOLDER LOCK
#
# Python's venv where the system has it, else pip from Debian's wheel package: a bare Debian has
# Python without venv and pip, and an ordinary user can't install them.
set -eu
folder=$1 lock=$2
home=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd -P)
for python in "${LLM_PYTHON:-}" python3.11 python3.12 python3.13 python3.10 python3.9 python3; do
    [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null && break
    python=
done
[ -n "$python" ] || { echo "venv: no Python >= 3.9; install one or set LLM_PYTHON" >&2; exit 2; }
rm -rf "$folder"
if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv "$folder"
else
    "$python" -m venv --without-pip "$folder"
    wheel=$(sh "$home/bin/_llm/tool.sh" setup --pip-wheel)
    "$folder/bin/python" "$wheel/pip" install --quiet pip
fi
echo "venv: installing the checkers into $folder"
"$folder/bin/python" -m pip install --quiet --require-hashes -r "$lock" || {
    rm -rf "$folder"
    echo "venv: pip could not install $lock; check pip's index and the network" >&2
    exit 2
}
