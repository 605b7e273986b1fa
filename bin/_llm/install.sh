#!/bin/sh
# Copy programs, recipes and sites to a prefix: install.sh PREFIX
#
# Each folder is copied beside its place and then renamed, so that users never see half of one. The
# images, and profiles that an administrator added to PREFIX/sites, stay.
set -eu
prefix=$1
home=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd -P)
mkdir -p "$prefix" || { echo "install: $prefix can't be made; choose another PREFIX or use sudo" >&2; exit 2; }
prefix=$(CDPATH='' cd -- "$prefix" && pwd -P)
[ "$prefix" != "$home" ] || { echo "install: PREFIX is this checkout; choose another" >&2; exit 2; }
for folder in bin recipes sites; do
    new=$prefix/.$folder.new.$$ old=$prefix/.$folder.old.$$
    cp -R "$home/$folder" "$new"
    find "$new" -name __pycache__ -type d -prune -exec rm -rf {} +
    if [ "$folder" = sites ] && [ -d "$prefix/sites" ]; then
        for profile in "$prefix"/sites/*.ini; do
            [ -e "$new/$(basename "$profile")" ] || cp -p "$profile" "$new/"
        done
    fi
    if [ -e "$prefix/$folder" ]; then mv "$prefix/$folder" "$old"; fi
    mv "$new" "$prefix/$folder"
    rm -rf "$old"
done
# Bytecode now, by the Python that llm-run picks: users can't write it beside the library, and each
# start would compile again.
for python in /usr/bin/python3.14 /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11 \
    /usr/bin/python3.10 /usr/bin/python3.9 "${LLM_PYTHON:-python3}"; do
    if command -v "$python" > /dev/null 2>&1; then
        "$python" -m compileall -q "$prefix/bin/_llm" || true
        break
    fi
done
git -C "$home" rev-parse HEAD > "$prefix/.commit" 2>/dev/null || echo unknown > "$prefix/.commit"
mkdir -p "$prefix/images"
# An Apptainer that only this checkout has is used from there.
if [ -e "$home/.tools/apptainer/here" ] && [ ! -e "$prefix/.tools" ]; then
    ln -s "$home/.tools" "$prefix/.tools"
fi
echo "install: $prefix/bin/llm-run is ready; images belong in $prefix/images (LLM_IMAGE_DIR=$prefix/images make image)"
