#!/bin/bash
# The helm of the tests, built from its Go module in the version that go.mod says. Prints its path. Builds once, in the user's
# cache; from nothing that takes two to three minutes on two cores. HELM names a program that is taken as it is.
#
# usage: build.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/go.sh
. "$here/../go.sh"

if [ -n "${HELM:-}" ]; then
    [ -x "$HELM" ] || die "HELM=$HELM is no program"
    echo "$HELM"
    exit
fi
version=$(sed -n 's|^\thelm.sh/helm/v4 \(v[0-9.]*\) .*|\1|p' "$here/go.mod")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fairlead/helm
out=$cache/helm-$version
if [ ! -x "$out" ]; then
    mkdir -p "$cache"
    # One at a time: tests run side by side.
    exec 9>"$cache/lock"
    flock 9
fi
if [ ! -x "$out" ]; then
    need_go "$cache"
    echo "build.sh: building helm $version, once; this takes some minutes" >&2
    cd "$here"
    nice -n 5 go build -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=$version" \
        -o "$out.fresh" helm.sh/helm/v4/cmd/helm >&2
    mv "$out.fresh" "$out"
fi
echo "$out"
