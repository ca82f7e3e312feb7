#!/bin/bash
# Every check of the repository, from nothing: installs what it needs (Debian 12, Rust's stable toolchain with
# rustfmt and clippy is there), then lints, documentation, the kernel programs from source, all tests (root, for the
# lab), the image, fuzz targets, benches, and the demo. A step that fails ends it, by name.
#
# usage: tests/run.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=deploy/setup.sh
. deploy/setup.sh

# Debian packages: of the demo; routers and tools of the lab and its bench; the compiler of the kernel programs.
PACKAGES="gcc g++ libc6-dev frr iproute2 ethtool curl ca-certificates
    bird2 gobgpd openbgpd tshark jq nftables haproxy bpftool procps iputils-ping tcpdump iperf3 openssl
    rustc-web cargo-web rust-web-src llvm python3-venv
    podman buildah runc systemd"
BPF_LINKER_VERSION=0.13.0
CACHE=$HOME/.cache/fairlead
LOGS=$(mktemp -d)
behind=
trap 'end' EXIT
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0
times=()

# step NAME COMMAND…: runs it, and says how long it took or that it failed.
step() {
    local name=$1 started=$SECONDS
    shift
    say "$name"
    "$@" || fail "failed: $name"
    times+=("$(printf '%5d s  %s' $((SECONDS - started)) "$name")")
}

toolchain() {
    need_rust
    cargo fmt --version >/dev/null 2>&1 || fail "rustfmt is missing: rustup component add rustfmt"
    cargo clippy --version >/dev/null 2>&1 || fail "clippy is missing: rustup component add clippy"
    rustc --version
}

packages() {
    # shellcheck disable=SC2086 # a list of words
    need_packages $PACKAGES
    # The package of OpenBGPD does not make the user that it runs as.
    id _openbgpd >/dev/null 2>&1 || useradd -r -d /run/openbgpd -s /usr/sbin/nologin _openbgpd
    need_kernel
}

# What is no part of the repository, and is built once for all: with the CPU that the first steps leave.
programs() {
    chrt --idle --pid 0 $BASHPID
    bpf_linker
    tests/control-plane/build.sh
    tests/coredns/build.sh
    tests/helm/build.sh
    tests/conformance/build.sh
}

# Waits for what runs behind.
joined() {
    local code=0
    wait $behind || code=$?
    behind=
    [ $code = 0 ] || tail -40 "$LOGS/programs"
    return $code
}

# The linker of the kernel programs, against the LLVM of Debian's compiler.
bpf_linker() {
    [ "$("$CACHE/bpf-linker/bin/bpf-linker" --version 2>/dev/null)" != "bpf-linker $BPF_LINKER_VERSION" ] || return 0
    local llvm library
    llvm=$(/usr/bin/rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    library=$(find /usr/lib -name "libLLVM.so.$llvm.*" -print -quit)
    [ -n "$library" ] || fail "libLLVM.so.$llvm is missing: apt-get install libllvm$llvm"
    mkdir -p "$CACHE/llvm/lib"
    ln -sf "$library" "$CACHE/llvm/lib/libLLVM.so"
    LLVM_PREFIX=$CACHE/llvm CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_OPT_LEVEL=0 \
        cargo install bpf-linker --quiet --version $BPF_LINKER_VERSION --locked --no-default-features \
        --features "llvm-$llvm" --root "$CACHE/bpf-linker"
}

# The committed objects must be what the source gives. With another compiler than theirs that cannot be said:
# then the tests run with objects that are made here.
kernel_programs() {
    local code=0
    lb-bpf/ebpf/build.sh --check || code=$?
    [ $code != 3 ] || export FAIRLEAD_BPF=${FAIRLEAD_BPF_TARGET:-$PWD/lb-bpf/ebpf/target}/fresh/fairlead.bpf.o
    [ $code = 0 ] || [ $code = 3 ]
}

# The pure cores, without I/O, each with no more features than it asks for itself.
cores() {
    local crate
    for crate in lb-bpf ipam bgp-speaker controller; do
        cargo clippy --quiet --locked -p $crate --no-default-features --lib -- -D warnings || return 1
    done
}

# Programs are those that are built with the tests: by themselves they would have other features, and be built anew.
tests() {
    local built
    built=$(realpath -m "${CARGO_TARGET_DIR:-target}")/debug
    FAIRLEAD_BIN=$built/fairlead FAIRLEAD_LOAD=$built/examples/load \
        cargo test --locked --workspace --no-fail-fast --config "target.'cfg(all())'.runner='tests/runner.sh'" 2>&1 | tee "$LOGS/tests"
}

end() {
    [ -z "$behind" ] || kill -- -"$behind" 2>/dev/null || true
    rm -rf "$LOGS"
}

fuzz() {
    local dir
    for dir in */fuzz; do
        [ ! -d "$dir" ] || "$dir/run.sh" || return 1
    done
}

need_root "$@"
step "toolchain" toolchain
step "packages" packages
set -m
programs >"$LOGS/programs" 2>&1 &
behind=$!
set +m
step "format" cargo fmt --all --check
step "clippy" cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
step "clippy of the pure cores" cores
step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --workspace --no-deps
step "bpf-linker, control plane, kube-proxy, CoreDNS, helm and conformance suite of the tests" joined
step "kernel programs are what the source gives" kernel_programs
step "tests" tests
step "the image" tests/image.sh
step "fuzz targets" fuzz
step "benches are built" cargo build --quiet --locked --workspace --benches
step "demo, as a newcomer runs it" deploy/quickstart.sh -o json

say "how long it took"
printf '%s\n' "${times[@]}"
awk '/^test result:/ { passed += $4; failed += $6 } END { printf "%d passed, %d failed\n", passed, failed }' "$LOGS/tests"
