#!/usr/bin/env bash
# The checks that take seconds, before the tests that take minutes: tools/check.sh
#
# .ci/run, .pre-commit-config.yaml and CONTRIBUTING.md all call this file, so a commit and CI are held to the same. It needs the project
# installed with its test packages, in the active environment: pip install -e '.[test]'. Every check runs, and the exit status is 1 if one failed.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=()

check() {
    echo "-- $*"
    "$@" || failed+=("$*")
}

mapfile -t kernels < <(git ls-files 'src/cpu/*.c' 'src/cpu/*.h' 'src/cpu/*.inc' 'src/cuda/*.cu' 'src/cuda/*.cuh' tests/fuzz/kernels.c)

check ruff check .
check ruff format --check .
check mypy
check cython-lint src/cpu/_cpu.pyx
check clang-format --dry-run -Werror "${kernels[@]}"
check python -m pytest tests/test_layout.py
check python -m pytest tests/test_documents.py -k limits

[ ${#failed[@]} = 0 ] || { printf 'failed: %s\n' "${failed[@]}" >&2 && exit 1; }
