#!/bin/sh
# Copy programs, recipes and sites to a prefix: install.sh PREFIX
#
# Each folder is copied beside its place and then renamed, so that users never see half of one. The
# images, and profiles that an administrator added to PREFIX/sites, stay; a profile that was edited in
# place stays as NAME.ini.old.
set -eu
prefix=$1
home=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd -P)
mkdir -p "$prefix" || { echo "install: $prefix can't be made; choose another PREFIX or use sudo" >&2; exit 2; }
prefix=$(CDPATH='' cd -- "$prefix" && pwd -P)
[ "$prefix" != "$home" ] || { echo "install: PREFIX is this checkout; choose another" >&2; exit 2; }
if [ ! -e "$prefix/bin/_llm/main.py" ] && [ ! -e "$prefix/.commit" ]; then
    for folder in bin recipes sites; do
        [ -e "$prefix/$folder" ] || [ -L "$prefix/$folder" ] || continue
        echo "install: $prefix/$folder is there already and not from make install
  why: bin, recipes and sites of PREFIX are replaced as a whole, with all that they hold
  fix: make install PREFIX='$prefix/llm'" >&2
        exit 2
    done
fi
# First, so that an installation that was cut short is known as one.
git -C "$home" rev-parse HEAD > "$prefix/.commit" 2>/dev/null || echo unknown > "$prefix/.commit"
for folder in bin recipes sites; do
    new=$prefix/.$folder.new.$$ old=$prefix/.$folder.old.$$
    cp -R "$home/$folder" "$new"
    find "$new" -type d \( -name __pycache__ -o -name '.*_cache' \) -prune -exec rm -rf {} +
    if [ "$folder" = sites ] && [ -d "$prefix/sites" ]; then
        for profile in "$prefix"/sites/*.ini "$prefix"/sites/*.ini.old*; do
            name=$(basename "$profile")
            [ -f "$profile" ] || continue
            if [ ! -e "$new/$name" ]; then
                cp -p "$profile" "$new/"
            elif ! cmp -s "$profile" "$new/$name"; then
                count=
                while [ -e "$prefix/sites/$name.old$count" ]; do count=$((${count:-1} + 1)); done
                cp -p "$profile" "$new/$name.old$count"
                echo "install: $prefix/sites/$name differed from ours; it is now $name.old$count"
            fi
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
mkdir -p "$prefix/images"
# An Apptainer that only this checkout has is used from there.
if [ -e "$home/.tools/apptainer/here" ] && [ ! -e "$prefix/.tools" ]; then
    ln -s "$home/.tools" "$prefix/.tools"
fi
echo "install: $prefix/bin/llm-run is ready; images belong in $prefix/images (LLM_IMAGE_DIR=$prefix/images make image)"
