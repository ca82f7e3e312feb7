#!/bin/bash
# Builds the kernel programs (fairlead.bpf.o, and fairlead_bench.bpf.o and fairlead_load.bpf.o for benches and tests), the
# same programs and maps wherever it runs. (The same bytes most times: bpf-linker orders a few forward declarations of
# BTF by the addresses that it happened to get.)
#
# usage: build.sh [--out DIR]   build into DIR (default: ../prebuilt) and note the compiler beside the objects
#        build.sh --check       build elsewhere and compare with ../prebuilt; exit codes:
#                               0 the same, 1 they differ or the build failed, 3 another compiler: not comparable
#                               (the fresh objects stay in $FAIRLEAD_BPF_TARGET/fresh, so that tests can take them)
#
# The compiler is the first of:
#   BPF_RUSTC and BPF_CARGO from the environment (with the source of `core` in the sysroot),
#   Debian's rustc-web, cargo-web and rust-web-src (/usr/bin/rustc),
#   rustup's nightly with the component rust-src.
# bpf-linker is taken from $BPF_LINKER_DIR, then ~/.cache/fairlead/bpf-linker/bin, then PATH; its LLVM must be at
# least that of the compiler.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
objects="fairlead fairlead_bench fairlead_load"
target=${FAIRLEAD_BPF_TARGET:-$here/target}

die() { echo "build.sh: $*" >&2; exit 1; }

mode=build out=$here/../prebuilt
case "${1:-}" in
    "") ;;
    --out) out=${2:?--out needs a folder} ;;
    --check) mode=check out=$target/fresh ;;
    *) sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

core=library/core/src/lib.rs
has_core() { [ -e "$("$1" --print sysroot 2>/dev/null)/lib/rustlib/src/rust/$core" ]; }
if [ -n "${BPF_RUSTC:-}" ] && [ -n "${BPF_CARGO:-}" ] && has_core "$BPF_RUSTC"; then
    RUSTC=$BPF_RUSTC CARGO=$BPF_CARGO
elif [ -x /usr/bin/cargo ] && [ -x /usr/bin/rustc ] && has_core /usr/bin/rustc; then
    RUSTC=/usr/bin/rustc CARGO=/usr/bin/cargo
elif RUSTC=$(rustup which --toolchain nightly rustc 2>/dev/null) && has_core "$RUSTC"; then
    CARGO=$(rustup which --toolchain nightly cargo)
else
    die "no compiler with the source of core: apt-get install rustc-web cargo-web rust-web-src (Debian), or rustup toolchain install nightly -c rust-src"
fi
export RUSTC RUSTC_BOOTSTRAP=1
# An outer cargo (build.rs) names its own compiler, flags and libraries.
unset RUSTFLAGS CARGO_TARGET_DIR CARGO_BUILD_TARGET RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER RUSTUP_TOOLCHAIN \
    LD_LIBRARY_PATH MAKEFLAGS CARGO_MAKEFLAGS
export PATH=${BPF_LINKER_DIR:-$HOME/.cache/fairlead/bpf-linker/bin}:$PATH
command -v bpf-linker >/dev/null || die "bpf-linker is missing: cargo install bpf-linker --version 0.13.0 --locked (see README.md)"
strip=${STRIP:-$(command -v llvm-strip || ls /usr/bin/llvm-strip-* 2>/dev/null | tail -1 || true)}
[ -n "$strip" ] || die "llvm-strip is missing: apt-get install llvm"

# CARGO_ENCODED_RUSTFLAGS: paths may hold spaces.
separator=$'\x1f'
flags=(
    '--cfg=bpf_target_arch="x86_64"'
    -Ctarget-cpu=v3 # rustc always passes a CPU; v3: 32-bit ALU and jumps, Linux 5.1
    -Clink-arg=--btf
    -Clink-arg=--disable-expand-memcpy-in-order
    "--remap-path-prefix=$(cd "$here/.." && pwd)=/lb-bpf"
    "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    "--remap-path-prefix=$("$RUSTC" --print sysroot)=/rust"
)
CARGO_ENCODED_RUSTFLAGS=$(IFS=$separator; echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS
(cd "$here" && "$CARGO" build --quiet --locked --release --bins -Zbuild-std=core --target bpfel-unknown-none --target-dir "$target") || die "cargo build failed"

# code FILE, types FILE: what has to be the same, on stdout: all but BTF; the types of BTF, in no order.
code() {
    "${strip/llvm-strip/llvm-objcopy}" --remove-section .BTF --remove-section .BTF.ext \
        --remove-section .rel.BTF --remove-section .rel.BTF.ext "$1" -
}
types() { bpftool btf dump file "$1" | sed -E 's/^\[[0-9]+\]//; s/type_id=[0-9]+//g' | sort; }

same() {
    cmp -s "$1" "$2" || { cmp <(code "$1") <(code "$2") && diff <(types "$1") <(types "$2") >&2; }
}

mkdir -p "$out"
for name in $objects; do
    "$strip" -g -o "$out/$name.bpf.o" "$target/bpfel-unknown-none/release/$name"
done
{
    "$RUSTC" -vV | sed -n -e 1p -e '/^LLVM/p'
    bpf-linker --version
    "$strip" --version | sed -n 's/.*LLVM version/llvm-strip/p'
} > "$out/compiler.txt"

if [ $mode = check ]; then
    if ! cmp -s "$out/compiler.txt" "$here/../prebuilt/compiler.txt"; then
        echo "build.sh: the committed objects were made by another compiler; not compared:" >&2
        diff "$here/../prebuilt/compiler.txt" "$out/compiler.txt" >&2 || true
        exit 3
    fi
    for name in $objects; do
        same "$out/$name.bpf.o" "$here/../prebuilt/$name.bpf.o" || die "prebuilt/$name.bpf.o is not what the source gives: run lb-bpf/ebpf/build.sh and commit it"
    done
    echo "build.sh: prebuilt objects are what the source gives"
fi
