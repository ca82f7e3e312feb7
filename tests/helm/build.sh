#!/bin/bash
# The helm of the tests, built from its Go module in the version that go.mod says. Prints its path. Builds once, in the user's
# cache; from nothing that takes two to three minutes on two cores. HELM names a program that is taken as it is.
#
# usage: build.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/go.sh
. "$here/../go.sh"

given HELM
version=$(sed -n 's|^\thelm.sh/helm/v4 \(v[0-9.]*\) .*|\1|p' "$here/go.mod")
build() {
    local stamp=helm.sh/helm/v4/internal/version.version
    nice -n 5 go build -ldflags "-s -w -X $stamp=$version" -o "$1" helm.sh/helm/v4/cmd/helm
}
once helm "$version"
