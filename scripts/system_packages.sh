#!/bin/sh
# Install the Debian packages that FFCV is compiled against, if any is missing.
set -eu
packages="libopencv-dev libturbojpeg0-dev pkg-config g++ python3-dev python3-venv"
missing=""
for package in $packages; do
    case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true) in
    *"ok installed") ;;
    *) missing="$missing $package" ;;
    esac
done
# What a Python or a compiler from elsewhere brings need not come from Debian.
command -v g++ >/dev/null && missing=$(echo "$missing" | sed 's/g++//')
"${PYTHON:-python3}" -c 'import ensurepip, sysconfig, os; assert os.path.exists(sysconfig.get_paths()["include"] + "/Python.h")' 2>/dev/null &&
    missing=$(echo "$missing" | sed 's/python3-dev//; s/python3-venv//')
missing=$(echo $missing)
[ -n "$missing" ] || exit 0
if command -v apt-get >/dev/null; then
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif sudo -n true 2>/dev/null || { [ -t 0 ] && command -v sudo >/dev/null; }; then
        as_root="sudo"
    else
        echo "error: FFCV is compiled against packages that are missing; as root: apt-get install $missing" >&2
        exit 1
    fi
    echo "installing $missing"
    $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "error: FFCV is compiled against OpenCV and libjpeg-turbo: install what Debian calls $missing" >&2
    exit 1
fi
