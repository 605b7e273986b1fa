#!/bin/sh
# Makes a folder with another Debian's programs and its Slurm, for `make cluster-up SUITE=trixie`:
# root.sh SUITE. Root only. Prints the folder's path. It is there already, or no SUITE is given:
# nothing to do.
set -eu
PATH=$PATH:/usr/sbin:/sbin
suite=${1:-}
[ -n "$suite" ] || exit 0
home=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd -P)
[ "$(id -u)" = 0 ] || { echo "only root can make a folder with another Debian" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "apt-get install debootstrap" >&2; exit 2; }
# The mirror that the host's APT is configured with, and the user's cache folder.
settings=$(PYTHONPATH="$home/bin" python3 -c '
import os, sys
from _llm.debian import debian_mirrors
from _llm.settings import load_settings
settings = load_settings(os.environ, sys.argv[1])
print(settings.get("paths", "cache"))
print(debian_mirrors(dict(os.environ), settings.get("container", "debian_mirror"))["main"])
' "$home")
cache=$(printf '%s\n' "$settings" | sed -n 1p)
mirror=$(printf '%s\n' "$settings" | sed -n 2p)
folder=$cache/roots/$suite
if [ ! -d "$folder" ]; then
    rm -rf "$folder.new"
    mkdir -p "$folder.new"
    echo "debootstrap $suite $folder" >&2
    debootstrap --variant=minbase --include=slurmctld,slurmd,slurm-client,munge,iproute2,python3,procps \
        "$suite" "$folder.new" "$mirror" >"$folder.log" 2>&1 || {
        tail -5 "$folder.log" >&2
        exit 1
    }
    rm -rf "$folder.new/var/cache/apt/archives" "$folder.new/var/lib/apt/lists"
    mv "$folder.new" "$folder"
fi
echo "$folder"
