# Sourced by deploy/quickstart.sh and tests/run.sh: what both need of a bare Debian 12.
# shellcheck shell=bash

say() { printf '==> %s\n' "$*"; }

# One sentence that says what to do, and the end.
fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || fail "network namespaces and XDP need root: sudo env \"PATH=\$PATH\" $0 $*"
}

# The stable toolchain. rustup's own comes first: Debian's rustc-web (for the kernel programs) is in /usr/bin.
need_rust() {
    local home=${CARGO_HOME:-$HOME/.cargo} want have
    [ ! -x "$home/bin/cargo" ] || PATH=$home/bin:$PATH
    command -v cargo >/dev/null || fail "cargo is missing: install Rust's stable toolchain (https://rustup.rs), then run this again"
    want=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    have=$(rustc --version | cut -d ' ' -f 2)
    [ "$(printf '%s\n' "$want" "${have%%-*}" | sort -V | head -1)" = "$want" ] \
        || fail "Rust $have is too old, $want is needed: rustup update stable"
}

# Installs the Debian packages that are not there yet.
need_packages() {
    local package missing="" service
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || fail "these Debian packages are needed, and there is no apt-get to install them:$missing"
    say "installing$missing"
    local log
    log=$(mktemp)
    # shellcheck disable=SC2086 # a list of words
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
        tail -20 "$log" >&2
        fail "apt-get could not install$missing: see above (is there a network, and a Debian 12 mirror in /etc/apt/sources.list?)"
    fi
    rm -f "$log"
    # Only our own in our own namespaces are wanted, not one for this host.
    [ -d /run/systemd/system ] || return 0
    for service in frr haproxy; do
        case "$missing " in *" $service "*) systemctl disable --now $service >/dev/null 2>&1 || true ;; esac
    done
}

# What cannot be installed: tried out in a namespace that is gone afterwards.
need_kernel() {
    local probe=fairlead-probe-$$
    ip netns add $probe 2>/dev/null || fail "this kernel or container does not let root make network namespaces: use a virtual machine or a privileged container"
    if ! ip -n $probe link add br0 type bridge 2>/dev/null || ! ip -n $probe link add v0 type veth peer name v1 2>/dev/null; then
        ip netns del $probe
        fail "this kernel has no bridge or veth devices: modprobe bridge veth, or use another kernel"
    fi
    ip netns del $probe
    grep -qw bpf /proc/filesystems || fail "this kernel has no bpf filesystem (CONFIG_BPF_SYSCALL): use a kernel of Linux 5.15 or newer"
    [ "$(printf '%s\n' 5.15 "$(uname -r)" | sort -V | head -1)" = 5.15 ] || fail "Linux $(uname -r) is too old: 5.15 or newer is needed"
}
