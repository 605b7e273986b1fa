#!/bin/sh
# The last step inside a sandbox: remove what a build leaves behind and nobody needs at run time.
#
# Only folders that a host never shows in a container: /tmp and the home folder may be the host's
# own, so a build writes nothing there (build-tools.sh) and nothing is removed there.
set -eu
rm -rf /var/cache/apt/* /var/lib/apt/lists/* /var/cache/debconf/*-old /var/lib/dpkg/*-old
find /var/log -type f -delete
: > /etc/machine-id
# Debian compiles with file times; see install-python.sh for why not.
python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3.11 /usr/lib/python3
