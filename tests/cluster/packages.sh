#!/bin/sh
# Installs what a cluster in a box needs, where that is missing and this is root on Debian or Ubuntu.
# Elsewhere it does nothing: the box then says in a sentence what is missing.
set -eu
PATH=$PATH:/usr/sbin:/sbin
wanted=
for program in slurmctld:slurmctld slurmd:slurmd sinfo:slurm-client munged:munge ip:iproute2 \
    newuidmap:uidmap; do
    command -v "${program%%:*}" >/dev/null 2>&1 || wanted="$wanted ${program#*:}"
done
[ -n "$wanted" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || exit 0
# The packages must not start a cluster of their own on this machine: see invoke-rc.d(8).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
fi
echo "installing:$wanted" >&2
apt-get update -qq
# shellcheck disable=SC2086 # several words are meant
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $wanted >&2
