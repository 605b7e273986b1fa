#!/bin/sh
# Install the Debian packages of lock files, from the staging folder's repository (/mnt/debs) alone:
#
#     install-packages.sh LOCK...
#
# Runs inside a build. Every file of the repository was checked against the lock's SHA-256 before.
set -eu
if [ ! -s /var/lib/dpkg/status ]; then
    # A tree that was only unpacked: all packages at once, whose order dpkg finds when it configures
    # them. --force-depends: some want others configured before they are even unpacked.
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    { dpkg --force-depends --unpack /mnt/debs/pool/*.deb &&
        dpkg --force-depends --configure --pending; } > /mnt/scratch/dpkg.log 2>&1 || {
        tail -n 30 /mnt/scratch/dpkg.log >&2
        exit 1
    }
    rm -f /mnt/scratch/dpkg.log /usr/sbin/policy-rc.d
fi
# No sandbox user: in a build without subordinate ids there is only one user.
printf 'APT::Sandbox::User "root";\nAcquire::Languages "none";\n' > /etc/apt/apt.conf.d/99build
echo 'deb [trusted=yes] file:/mnt/debs bookworm main' > /etc/apt/sources.list
rm -f /etc/apt/sources.list.d/*
apt-get update -qq
# Exactly the locked versions: "name=version" for each line of each lock.
# shellcheck disable=SC2046  # a list of packages
apt-get install -y -qq --no-install-recommends --allow-downgrades \
    $(awk '!/^#/ && NF {print $1 "=" $2}' "$@") > /mnt/scratch/apt.log 2>&1 || {
    tail -n 30 /mnt/scratch/apt.log >&2
    exit 1
}
rm -rf /mnt/scratch/apt.log /etc/apt/sources.list /etc/apt/apt.conf.d/99build /var/lib/apt/lists/*
