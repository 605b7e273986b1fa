# Sourced inside a build: puts the locked build tools (uv, cmake, ninja …) into $tools.
# shellcheck shell=sh
#
# They come from /mnt/python, as all Python packages do; there is no network. Nothing is written to
# /tmp, which in a build is the host's and which other builds use at the same time, nor to a home
# folder. PYTHONHASHSEED: packages that are built write sets in the order of their hashes (deepspeed's
# METADATA).
. /mnt/packages.env
export TMPDIR=/mnt/scratch HOME=/mnt/scratch PYTHONHASHSEED=0
tools=/mnt/scratch/build-tools
if [ ! -d "$tools" ]; then
    # pip, run from its wheel, is what Debian's Python comes with; it is not installed.
    python3 "$(ls /usr/share/python-wheels/pip-*.whl)/pip" install --quiet --no-deps --require-hashes \
        --no-cache-dir --root-user-action ignore --target "$tools" -r /mnt/build.lock
fi
