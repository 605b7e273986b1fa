#!/bin/sh
# Install the locked Python packages into the image's Python: install-python.sh LOCK SOURCE_PACKAGES
#
# Runs inside a build and needs no network: packages.env lets pip and uv see /mnt/python alone, which
# holds the file of each locked package (bin/_llm/images/python_files.py). LOCK: requirements with
# hashes. SOURCE_PACKAGES: a file that names the packages that exist only as source; they are built
# last, against what is installed by then.
set -eu
lock=$1 sources=$2
. /mnt/build-tools.sh

sources=$(sed 's/#.*//' "$sources" | tr -s ' \n' ' ')
split() { # keep the requirements that are (1) or are not (0) source packages, with their hashes
    awk -v names="$sources" -v want="$1" '
        BEGIN { n = split(names, list, " "); for (i = 1; i <= n; i++) source[list[i]] = 1 }
        /^[A-Za-z0-9]/ { name = $1; sub(/[=@\[].*/, "", name); keep = ((name in source) == want) }
        keep || /^--/' "$lock"
}
split 0 > /mnt/scratch/wheels.txt
split 1 > /mnt/scratch/sources.txt

# Bytecode is compiled by the image's definition at the end, by compile_bytecode.py.
export UV_CACHE_DIR=/mnt/uv-cache UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1
# --no-index: uv has no variable for it, and would take what its cache knows of an index.
install="$tools/bin/uv pip install --system --break-system-packages --no-index --no-deps"
install="$install --require-hashes"
$install --only-binary :all: -r /mnt/scratch/wheels.txt
if [ -s /mnt/scratch/sources.txt ]; then
    # Without the cache: a package that another build made there may have been made otherwise.
    PYTHONPATH=$tools $install --no-cache --no-build-isolation -r /mnt/scratch/sources.txt
fi
