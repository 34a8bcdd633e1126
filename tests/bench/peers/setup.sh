#!/bin/sh
# setup.sh DIR - makes DIR/bin/python3 with PyTorch, Transformers and DeepSpeed, and DIR/mkl_as_intel.so.
# With nothing to do it only compares requirements.txt and deepspeed.txt with the copies it left.
set -eu
here=$(dirname "$(readlink -f "$0")")
venv=$1

install() { "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check "$@"; }

if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  echo "setting up PyTorch in $venv (5 GB, minutes, once)" >&2
  python3 -m venv "$venv"
  install -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/requirements.txt"
fi
if ! cmp -s "$here/deepspeed.txt" "$venv/deepspeed.txt"; then # its set-up imports PyTorch
  echo "setting up DeepSpeed in $venv (once)" >&2
  DS_BUILD_OPS=0 DS_ACCELERATOR=cpu install --no-build-isolation -r "$here/deepspeed.txt"
  cp "$here/deepspeed.txt" "$venv/deepspeed.txt"
fi
[ "$venv/mkl_as_intel.so" -nt "$here/mkl_as_intel.c" ] ||
  ${CC:-cc} -O2 -shared -fPIC -o "$venv/mkl_as_intel.so" "$here/mkl_as_intel.c"
