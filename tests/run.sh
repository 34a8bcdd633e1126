#!/bin/sh
# run.sh BUILD [PATTERN] - runs the specs through ctest on the program in BUILD.
# With a PATTERN (plain text): every spec file whose path has it, and those specs
# whose describe or it has it.
set -eu
build=$1
pattern=${2-}
cd "$(dirname "$(readlink -f "$0")")/.."

if [ -z "$pattern" ]; then
  exec ctest --test-dir "$build" --no-label-summary --output-on-failure
fi

chosen=$(
  find tests -name '*_spec.lua' -o -name kernels_test.c | while IFS= read -r spec; do
    case $spec in
      *"$pattern"*) printf '%s\n' "$spec" ;;
      *) grep -E '(describe|it) *\(?' "$spec" | grep -qF -- "$pattern" && printf '%s\n' "$spec" ;;
    esac
  done || true
)
if [ -z "$chosen" ]; then
  echo "lumoe test: no spec has '$pattern' in its path or names" >&2
  exit 1
fi
regex=$(printf '%s\n' "$chosen" | sed 's/[.]/[.]/g' | paste -sd '|')
LUMOE_TEST_PATTERN=$pattern exec ctest --test-dir "$build" --no-label-summary --output-on-failure -R "^($regex)\$"
