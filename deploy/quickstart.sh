#!/bin/bash
# Fairlead at work, from nothing: installs what the demo needs (Debian 12, Rust's stable toolchain is there),
# builds `fairlead` and runs `fairlead demo` with the arguments of this script. Everything that it makes outside
# the build folder is in network namespaces, and gone afterwards.
#
# usage: deploy/quickstart.sh [--keep] [-o table|json]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=deploy/setup.sh
. deploy/setup.sh
# stdout is the demo's.
{
    need_root "$@"
    need_rust
    # gcc: Rust's linker. curl: for those who look around after --keep.
    need_packages gcc libc6-dev frr iproute2 ethtool curl ca-certificates
    need_kernel
    say "building fairlead with $(rustc --version) (the first time takes some minutes)"
    started=$SECONDS
    cargo build --quiet --locked --profile quick -p controller --bin fairlead \
        || fail "cargo could not build fairlead: see above (is there a network for the crates?)"
    say "built in $((SECONDS - started)) s; fairlead demo $*"
} >&2
exec "${CARGO_TARGET_DIR:-target}/quick/fairlead" demo "$@"
