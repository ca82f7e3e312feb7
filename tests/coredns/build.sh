#!/bin/bash
# CoreDNS with the plugins that tests need, from its Go module in the version that go.mod says. Prints its path. Builds once, in the
# user's cache; from nothing that takes two to three minutes on two cores. COREDNS names a program that is taken as it is.
#
# usage: build.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/go.sh
. "$here/../go.sh"

given COREDNS
version=$(sed -n 's|^require github.com/coredns/coredns \(v[0-9.]*\)$|\1|p' "$here/go.mod")
build() { nice -n 5 go build -ldflags "-s -w" -o "$1" .; }
once coredns "$version"
