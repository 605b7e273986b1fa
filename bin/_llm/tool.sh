#!/bin/sh
# Runs one of the repository's own tools (used by the Makefile): tool.sh setup|image [ARG...]
set -eu
llm_home=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd -P)
. "$llm_home/bin/_llm/python.sh"
llm_start "$@"
