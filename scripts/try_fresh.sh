#!/bin/sh
# Run the README's commands on a fresh machine: a minimal Debian in a temporary folder, entered with chroot.
#
# Usage, as root, with debootstrap installed: scripts/try_fresh.sh [bookworm|trixie] [demo|test|wheels]...
#   demo, test  `make demo`, `make test` of the last commit, as root (default: both)
#   wheels      `make wheels` as root; then a user without root, compiler and OpenCV installs them in another tree,
#               converts a data set and trains for one epoch
# WHEELS=FOLDER: wheels that are built already.
# Mounts are in a namespace of their own, which ends with the script. Nothing outside the temporary folder is changed.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)

# Inside the namespace: $1 is the tree, the rest is the command that is run in it.
enter() {
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    [ -z "$wheels" ] || mount --bind "$wheels" "$1/mnt"
    tree=$1
    shift
    exec env -i HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        chroot "$tree" "$@"
}
if [ "${1:-}" = --enter ]; then
    shift
    enter "$@"
fi

suite=${1:-trixie}
[ $# = 0 ] || shift
case $suite in bookworm | trixie) ;; *) echo "error: bookworm or trixie, got $suite" >&2; exit 2 ;; esac
for command in "$@"; do
    case $command in demo | test | wheels) ;; *) echo "error: demo, test or wheels, got $command" >&2; exit 2 ;; esac
done
[ $# -gt 0 ] || set -- demo test
[ "$(id -u)" = 0 ] || { echo "error: root makes the tree: run it with sudo" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "error: debootstrap is missing: apt-get install debootstrap" >&2; exit 1; }

base=$(mktemp -d)
trap 'rm -rf --one-file-system "$base"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
wheels=
export wheels

# in_tree TREE COMMAND...: mounts and processes end with the command.
in_tree() {
    unshare --mount --pid --fork --kill-child "$repository/scripts/try_fresh.sh" --enter "$@"
}

# new_tree NAME PACKAGE...: a tree with these packages of Debian and this machine's network settings.
new_tree() {
    tree=$base/$1
    shift
    unshare --mount debootstrap --variant=minbase "$suite" "$tree" >"$base/debootstrap.log" || { tail "$base/debootstrap.log" >&2; exit 1; }
    cp /etc/resolv.conf /etc/hosts "$tree/etc"
    in_tree "$tree" apt-get update -qq
    in_tree "$tree" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >"$base/apt.log" 2>&1 ||
        { tail "$base/apt.log" >&2; exit 1; }
    for file in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do # after the package ca-certificates, which writes it
        [ ! -e "$file" ] || install -D "$file" "$tree$file"
    done
}

# run TREE COMMAND: say what is run, and how long it took.
run() {
    echo "$suite, $("$base/version" "$1"): \$ $2"
    started=$(date +%s)
    in_tree "$1" sh -euc "$2"
    echo "$suite: took $(($(date +%s) - started)) s"
}
cat >"$base/version" <<'SH'
#!/bin/sh
echo "Debian $(cat "$1/etc/debian_version"), $(basename "$(readlink "$1/usr/bin/python3")")"
SH
chmod +x "$base/version"

new_tree root python3 python3-pip make
mkdir "$base/root/root/ffcv_cropmix"
git -C "$repository" archive HEAD | tar x -C "$base/root/root/ffcv_cropmix"
for command in "$@"; do
    [ "$command" = wheels ] || { run "$base/root" "cd ~/ffcv_cropmix && make $command"; continue; }
    if [ -n "${WHEELS:-}" ]; then
        wheels=$(cd "$WHEELS" && pwd)
    else
        run "$base/root" "cd ~/ffcv_cropmix && make wheels"
        wheels=$base/wheels
        mv "$base/root/root/ffcv_cropmix/wheels" "$wheels"
    fi
    new_tree user python3 python3-venv
    in_tree "$base/user" useradd --create-home user
    cp "$repository/examples/demo.yaml" "$base/user/home/user"
    run "$base/user" 'exec su user -c "set -e; cd; python3 -m venv venv; . venv/bin/activate; set -x
        pip install --quiet --find-links /mnt \"ffcv-cropmix[demo]\"
        ffcv-cropmix convert --dataset=digits --split=train --write_path=train.beton
        ffcv-cropmix convert --dataset=digits --split=val --write_path=val.beton
        ffcv-cropmix train --config-file demo.yaml --training.epochs=1 --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=run"'
done
