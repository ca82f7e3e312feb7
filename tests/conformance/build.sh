#!/bin/bash
# The conformance suite of the Multi-Cluster Services API, built as its Makefile does, as a test program. Prints its path. Builds
# once, in the user's cache; from nothing that takes two to three minutes on two cores. MCS_CONFORMANCE names a program that is
# taken as it is.
#
# `suite/` is the module sigs.k8s.io/mcs-api/conformance (Apache License 2.0), as the tag conformance/v0.5.0 of its repository has it, unchanged,
# because the Go module proxy does not have it. What it uses comes from there, in the versions that go.mod says.
#
# usage: build.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/go.sh
. "$here/../go.sh"

given MCS_CONFORMANCE
version=$(sed -n 's|^require sigs.k8s.io/mcs-api/conformance \(v[0-9.]*\) .*|\1|p' "$here/go.mod")
build() { nice -n 5 go test -c -ldflags "-s -w" -o "$1" sigs.k8s.io/mcs-api/conformance; }
once mcs-conformance "$version"
