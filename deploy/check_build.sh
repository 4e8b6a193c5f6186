#!/usr/bin/env bash
# Builds the CPU images without a Docker engine and proves that they run. As root on Debian, about 15 GB of disk:
#
#   apt-get install buildah mmdebstrap
#   deploy/check_build.sh [serve-cpu] [demo]
#
# buildah executes the Dockerfile itself, each RUN in a chroot. Debian's own Python 3.11 stands in for python:3.11-slim, so
# no image has to be fetched. Settings: MODEL, a folder to serve, by default a tiny random one, for which `imod` must be
# there; WHEELS, a folder with the CPU build of torch, instead of PyTorch's index; SCRATCH, where all of it lies
# until it ends; KEEP=1 leaves the images there.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d "${SCRATCH:-/var/tmp}/imod-build.XXXXXX")
key=check-build-key
server=
export TMPDIR=$scratch/tmp
mkdir "$TMPDIR"
mkdir --mode 777 "$scratch/pids"

store() { buildah --root "$scratch/store" --runroot "$scratch/run" "$@"; }

clean() {
    [ -z "$server" ] || kill -KILL "$(cat "$scratch/pids/server")" || true
    wait
    [ -z "${KEEP:-}" ] || { echo "Images: buildah --root $scratch/store --runroot $scratch/run images"; return; }
    store rm --all >/dev/null || true
    store rmi --all --force >/dev/null || true
    rm -rf "$scratch"
}
trap clean EXIT

stand_in() {
    mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$scratch/root.tar"
    local box
    box=$(store from scratch)
    store add --quiet "$box" "$scratch/root.tar" / >/dev/null
    store config --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt "$box"
    store commit --quiet --rm "$box" localhost/python:3.11
    rm "$scratch/root.tar"
}

build() {
    local from=()
    [ -z "${WHEELS:-}" ] || from=(--volume "$WHEELS:/wheels:ro" --build-arg "TORCH_OPTIONS=--find-links /wheels")
    store bud --format docker --isolation chroot --layers=false --pull-never --target "$1" --tag "localhost/imod:$1" \
        --build-arg PYTHON_IMAGE=localhost/python:3.11 --volume /etc/ssl/certs:/etc/ssl/certs:ro "${from[@]}" "$here"
}

config() { store inspect --format "{{range .Docker.Config.$2}}{{.}} {{end}}" "$1"; }

inside() {
    local box=$1
    shift
    store run --isolation chroot --volume "$model:/model:ro" --volume "$scratch/pids:/pids:rw" \
        --env "IMOD_API_KEY=$key" "$box" -- "$@"
}

# The launcher gets the stop signal itself, as from a container engine; there are no process ids of its own in a chroot.
start() {
    local box=$1
    shift
    # shellcheck disable=SC2016
    inside "$box" sh -c 'echo $$ > /pids/server; exec "$@"' sh "$@" &
    server=$!
}

stop() {
    kill "$(cat "$scratch/pids/server")"
    wait "$server"
    server=
}

wait_for() {
    for _ in $(seq 1800); do
        ! curl --silent --fail --output /dev/null "$1" || return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 1
    done
    echo "Nothing answers at $1" >&2
    return 1
}

fails() { if "$@" 2>/dev/null; then echo "This should have failed: $*" >&2; exit 1; fi; }

check_user() {
    [ "$(inside "$1" id -u)" = 10001 ]
    fails inside "$1" touch /opt/imod/there
}

check_server() {
    local box url=http://127.0.0.1:18000
    box=$(store from --pull-never localhost/imod:serve-cpu)
    check_user "$box"
    # shellcheck disable=SC2046
    start "$box" $(config "$box" Entrypoint) $(config "$box" Cmd) --port 18000
    wait_for $url/ready
    inside "$box" python3 -c "from imod_serve.probe import picture; open('/tmp/p.png', 'wb').write(picture())"
    inside "$box" imod ask "What is this?" --image /tmp/p.png --url $url --json
    [ "$(curl --silent --output /dev/null --write-out '%{http_code}' $url/v1/models)" = 401 ]
}

check_demo() {
    local box url=http://127.0.0.1:17860
    box=$(store from --pull-never localhost/imod:demo)
    check_user "$box"
    fails inside "$box" python3 -c "import torch"
    # shellcheck disable=SC2046
    start "$box" $(config "$box" Entrypoint) --url http://127.0.0.1:18000 --no-examples --port 17860
    wait_for $url/
    [[ $(curl --silent $url/) == *gradio* ]]
}

[ "$(id -u)" = 0 ] || { echo "buildah's chroot isolation needs root: run it as root." >&2; exit 2; }
model=${MODEL:-$scratch/model}
[ -n "${MODEL:-}" ] || imod base build --preset tiny --out "$model"
chmod -R a+rX "$model"
[ $# -gt 0 ] || set -- serve-cpu demo
stand_in
for target in "$@"; do
    build "$target"
    [ "$target" != serve-cpu ] || check_server
    [ "$target" != demo ] || check_demo
    stop
    echo "$target: built, started, answered"
done
store images
