#!/bin/sh
# The last step inside a sandbox: remove what a build leaves behind and nobody needs at run time.
set -eu
rm -rf /tmp/* /var/tmp/* /var/cache/apt/* /var/lib/apt/lists/* /var/cache/debconf/*-old \
    /var/lib/dpkg/*-old /root/.cache /root/.config
find /var/log -type f -delete
: > /etc/machine-id
# Debian compiles with file times; see install-python.sh for why not.
python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3.11 /usr/lib/python3
