#!/bin/sh
# Run the recipes' tests inside an image: bin/llm-run sh tests/recipes/run.sh [PYTEST OPTION...]
#
# pytest is no part of an image; it comes from the checkers' environment, whose pure-Python packages
# run under the image's Python too.
set -eu
home=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd -P)
cd "$home"
folder=tests/recipes
for word in "$@"; do
    case $word in tests/*) folder= ;; esac
done
site=$(find "$home/.tools/venv/lib" -maxdepth 2 -name site-packages)
exec python -I -c '
import sys
sys.path[:0] = [sys.argv.pop(1)]
# The image'"'"'s packages go before those of the checkers.
sys.path.append(sys.path.pop(0))
import pytest
sys.exit(pytest.main(sys.argv[1:]))
' "$site" ${folder:+"$folder"} -p no:cacheprovider "$@"
