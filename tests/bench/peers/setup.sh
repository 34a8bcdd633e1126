#!/bin/sh
# setup.sh DIR - makes DIR/bin/python3 with PyTorch and Transformers, and DIR/mkl_as_intel.so.
# With nothing to do it only compares requirements.txt with the copy it left.
set -eu
here=$(dirname "$(readlink -f "$0")")
venv=$1
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  echo "setting up PyTorch in $venv (5 GB, minutes, once)" >&2
  python3 -m venv "$venv"
  "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/requirements.txt"
fi
[ "$venv/mkl_as_intel.so" -nt "$here/mkl_as_intel.c" ] ||
  ${CC:-cc} -O2 -shared -fPIC -o "$venv/mkl_as_intel.so" "$here/mkl_as_intel.c"
