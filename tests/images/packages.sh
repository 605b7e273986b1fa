#!/bin/sh
# Installs the browser that looks at reports, where it is missing and this is root on Debian.
# Elsewhere it says how: the tests that need it are skipped, with that reason.
set -eu
wanted=
for program in chromium:chromium chromedriver:chromium-driver; do
    command -v "${program%%:*}" >/dev/null 2>&1 || wanted="$wanted ${program#*:}"
done
[ -n "$wanted" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "no Chromium: reports are not tested in a browser; as root: apt-get install$wanted" >&2
    exit 0
fi
echo "installing:$wanted" >&2
# Ubuntu's packages of these names are empty and want snap: then the tests are skipped, too.
# shellcheck disable=SC2086 # several words are meant
{ apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $wanted >&2; } ||
    echo "no Chromium: reports are not tested in a browser" >&2
