#!/bin/bash
# The control plane of the tests: kube-apiserver, kubectl and etcd, and kube-proxy, built from their Go modules in the versions
# that go.mod says. Prints the directory that has them. Builds once, in the user's cache; from nothing that takes some
# minutes and 3 GB (Go's own caches). KUBEBUILDER_ASSETS, as of envtest, names a directory that is taken as it is; without a
# kube-proxy in it, tests that need one fail.
#
# usage: build.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
envtest="kube-apiserver kubectl etcd"
programs="$envtest kube-proxy"
# shellcheck source=tests/go.sh
. "$here/../go.sh"

version() { sed -n "s|^\t$1 \(v[0-9.]*\) .*|\1|p" "$here/go.mod"; }
# complete DIRECTORY PROGRAMS
complete() {
    local program
    for program in $2; do
        [ -x "$1/$program" ] || return 1
    done
}

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
    complete "$KUBEBUILDER_ASSETS" "$envtest" || die "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS lacks one of: $envtest"
    echo "$KUBEBUILDER_ASSETS"
    exit
fi
kubernetes=$(version k8s.io/kubernetes)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fairlead/control-plane
out=$cache/$kubernetes-etcd-$(version go.etcd.io/etcd/server/v3)
if ! complete "$out" "$programs"; then
    mkdir -p "$cache"
    # One at a time: tests start several control planes at once.
    exec 9>"$cache/lock"
    flock 9
fi
if ! complete "$out" "$programs"; then
    need_go "$cache"
    echo "build.sh: building $programs ($kubernetes), once; this takes some minutes" >&2
    fresh=$(mktemp -d "$cache/fresh.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    cd "$here"
    stamp=k8s.io/component-base/version
    IFS=. read -r major minor _ <<<"${kubernetes#v}"
    nice -n 5 go build -ldflags "-s -w -X $stamp.gitVersion=$kubernetes -X $stamp.gitMajor=$major -X $stamp.gitMinor=$minor" \
        -o "$fresh/" k8s.io/kubernetes/cmd/{kube-apiserver,kube-proxy,kubectl} >&2
    nice -n 5 go build -ldflags "-s -w" -o "$fresh/etcd" go.etcd.io/etcd/server/v3 >&2
    rm -rf "$out"
    mv "$fresh" "$out"
fi
echo "$out"
