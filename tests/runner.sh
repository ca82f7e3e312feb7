#!/bin/bash
# Runs a binary of tests for cargo: those of the speaker's lab wait for routers most of the time, so more of them run at
# once than there are CPUs.
#
# usage: runner.sh BINARY ARGUMENT…
set -euo pipefail
case $PWD:$1 in
    */bgp-speaker:*/lab-*) export RUST_TEST_THREADS=$((3 * $(nproc))) ;;
esac
exec "$@"
