#!/bin/bash
# The image, built as deploy/Containerfile says and run with what deploy/kubernetes/agent.yaml gives: a node starts in it and
# is ready. No registry is asked: the toolchain of this machine takes the place of the image that has one.
#
# usage: image.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
name=fairlead-image-$$
trap 'end' EXIT
# A store of its own, without overlays, which not all machines have.
podman() { command podman --root "$work/store" --runroot "$work/run" --storage-driver vfs --runtime runc "$@"; }
end() {
    podman rm --force --ignore --time 5 $name >/dev/null || true
    ip netns del $name 2>/dev/null || true
    rm -rf "/sys/fs/bpf/fairlead/$name" "$work"
}
fail() {
    echo "image.sh: $*" >&2
    podman logs $name >&2 || true
    exit 1
}
# run ARGUMENT…: with no privileges but those that are given. Limits and cgroups as they are: a container may be around us.
run() {
    podman run --cgroups no-conmon --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
        --read-only --read-only-tmpfs=false --cap-drop ALL --security-opt no-new-privileges "$@"
}

toolchain=$(dirname "$(dirname "$(rustup which cargo)")")
mkdir -p target/image
podman build --quiet --isolation chroot --build-arg RUST=scratch --build-arg PROFILE=quick \
    -v /usr:/usr:ro -v /bin:/bin:ro -v /lib:/lib:ro -v /lib64:/lib64:ro -v /etc:/etc:ro \
    -v "$toolchain:/usr/local:ro" -v "${CARGO_HOME:-$HOME/.cargo}:/root/.cargo" -v "$PWD/target/image:/src/target" \
    -f deploy/Containerfile -t fairlead . >"$work/build.log" 2>&1 || { tail -30 "$work/build.log" >&2; fail "the image is not built"; }

version=$(run --rm --network none fairlead --version)
[ "$version" = "fairlead $(sed -n 's/^appVersion: //p' deploy/helm/fairlead/Chart.yaml)" ] || fail "it is $version"

# A controller needs nothing; it misses but its cluster.
said=$(run --rm --network none --user 65532:65532 fairlead controller --kubeconfig /none 2>&1) && fail "a controller without a cluster"
[[ $said == *"/none"* ]] || fail "the controller says: $said"

# A node, on a host's network. All but its volumes is read-only.
capabilities=$(sed -n '/^ *add:$/,/^ *ports:/s/^ *- \([A-Z_]*\) .*/--cap-add \1/p' deploy/kubernetes/agent.yaml)
[ "$(wc -w <<<"$capabilities")" -ge 10 ] || fail "deploy/kubernetes/agent.yaml has no capabilities"
ip netns add $name
ip -n $name link set lo up
ip -n $name link add eth0 type veth peer name eth1
ip -n $name link set eth0 up
mkdir "$work/api" "$work/state" "$work/config"
cp deploy/examples/* "$work/config/"
echo "{apiVersion: v1, kind: Node, metadata: {name: $name, labels: {role: balancer}}}" >"$work/config/node.yaml"
# Podman's own profile of system calls, but bpf(2) goes with CAP_BPF, as containerd since 1.7 has it in its default.
jq '(.syscalls[] | select(.names | index("bpf")).names) -= ["bpf"]
    | .syscalls += [{names: ["bpf"], action: "SCMP_ACT_ALLOW", args: [], includes: {caps: ["CAP_BPF"]}, excludes: {}}]' \
    /usr/share/containers/seccomp.json >"$work/seccomp.json"
# shellcheck disable=SC2086 # a list of words
run --detach --name $name --network "ns:/run/netns/$name" $capabilities \
    --security-opt seccomp="$work/seccomp.json" -v /sys/fs/bpf:/sys/fs/bpf \
    -v "$work/config:/etc/fairlead:ro" -v "$work/api:/run/fairlead" -v "$work/state:/var/lib/fairlead" \
    fairlead standalone --config-dir /etc/fairlead --node-name $name --interface eth0 >/dev/null
deadline=$((SECONDS + 120))
until [ "$(ip netns exec $name curl -s http://127.0.0.1:9617/readyz)" = ok ]; do
    [ $SECONDS -lt $deadline ] || fail "the node is not ready after 120 s"
    [ "$(podman inspect -f '{{.State.Running}}' $name)" = true ] || fail "the node has ended"
    sleep 0.2
done
podman exec $name /usr/local/bin/fairlead services -o json | jq -e 'length >= 4' >/dev/null || fail "it has not all services"
podman stop --time 30 $name >/dev/null
[ "$(podman inspect -f '{{.State.ExitCode}}' $name)" = 0 ] || fail "it does not end as it should"
# It forwards on until its pins are removed.
ip -n $name link show eth0 | grep -q xdp || fail "the datapath is gone with the node"
rm -r "/sys/fs/bpf/fairlead/$name"
until ! ip -n $name link show eth0 | grep -q xdp; do
    [ $SECONDS -lt $deadline ] || fail "the datapath is still there"
    sleep 0.2
done
echo "image.sh: $version starts, is ready and ends with $(tr -d '\n' <<<"${capabilities//--cap-add/}")"
