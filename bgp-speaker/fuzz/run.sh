#!/bin/bash
# Builds the fuzz targets with the stable toolchain (the coverage that libFuzzer needs is LLVM's own pass) and runs
# each on its corpus.
#
# usage: CRATE/fuzz/run.sh [SECONDS]     default 10; what it finds new stays out of the repository
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
seconds=${1:-10}
target=$(rustc -vV | sed -n 's/^host: //p')
passes="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
passes+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
passes+=" -Cllvm-args=-sanitizer-coverage-trace-compares"
# With a target named, build scripts are made without the flags.
RUSTFLAGS="$passes --cfg fuzzing" CARGO_TARGET_DIR=target cargo build --quiet --locked --release --target "$target"
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
for corpus in corpus/*; do
    name=$(basename "$corpus")
    mkdir -p "$found/$name"
    "target/$target/release/$name" -max_total_time="$seconds" -max_len=4097 -timeout=5 -rss_limit_mb=512 \
        -print_final_stats=1 "$found/$name" "$corpus" 2>"$found/log" || { tail -n 40 "$found/log"; exit 1; }
    sed -n 's/^stat::number_of_executed_units: */runs of '"$name"': /p' "$found/log"
done
