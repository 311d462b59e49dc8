#!/usr/bin/env bash
# The CPU kernels under a sanitizer: tools/sanitize.sh address|thread|fuzz [SECONDS] [pytest arguments]
#
#   address   gcc's address and undefined-behaviour sanitizers
#   thread    gcc's thread sanitizer
#   fuzz      clang's libFuzzer with the address and undefined-behaviour sanitizers; it keeps new cases in build/fuzz/corpus
#
# Each builds tests/fuzz/kernels.c with the sources of src/cpu, runs the cases of tests/fuzz/corpus, then random ones for SECONDS (30).
# A case that fails is left in build/KIND; put it into tests/fuzz/corpus. With pytest arguments the compiled module is built, too,
# beside a copy of the package, and those tests run on it:
#   tools/sanitize.sh thread 30 tests/test_fff.py tests/test_gemm.py
# Everything is built in build/KIND: the installed module stays as it is. Exit status 77: this machine has no such sanitizer.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
kind=${1:-} seconds=${2:-30} compiler=${CC:-gcc} most_team=3 launch=()
shift $(($# < 2 ? $# : 2))
case $kind in
address) flags=(-fsanitize=address,undefined -fno-sanitize-recover=undefined) library=libasan.so ;;
thread) # its shadow memory wants addresses that are not random; where a container forbids that, it may do without
    flags=(-fsanitize=thread) library=libtsan.so most_team=8
    setarch -R true 2>/dev/null && launch=(setarch -R)
    ;;
fuzz) flags=(-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -DLIBFUZZER) compiler=${CC:-clang} ;;
*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2 && exit 2 ;;
esac
build=$root/build/$kind
mkdir -p "$build/objects" "$build/corpus"
cd "$build"

probe='int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n ? 0 : 0; }'
[ "$kind" = fuzz ] || probe='int main(void) { return 0; }'
if ! { echo "$probe" | "$compiler" "${flags[@]}" -x c - -o probe && "${launch[@]}" ./probe -runs=0; } >probe.log 2>&1; then
    echo "tools/sanitize.sh: what $compiler builds with ${flags[*]} does not run here: $(head -1 probe.log)" >&2
    exit 77
fi

# Warnings of sanitized builds are those of the optimiser about code that the checks have changed.
printf '%s\n' "$root"/src/cpu/{team,team_openmp,best,dispatch}.c "$root"/src/cpu/isa_*.c "$root/tests/fuzz/kernels.c" |
    xargs -P "$(nproc)" -I{} sh -c 'file=$1; shift; "$@" -c "$file" -o "objects/$(basename "$file").o"' - {} "$compiler" -std=gnu11 -O1 -g1 -w \
        -fno-omit-frame-pointer -fno-math-errno -ffp-contract=off -pthread "-I$root/src/cpu" "${flags[@]}"
"$compiler" "${flags[@]}" -pthread objects/*.o -lm -o kernels

# The stack that gcc 13's sanitizer keeps for returned functions is not aligned to a vector of 64 bytes: its own aligned stores fault.
export ASAN_OPTIONS=detect_leaks=0:handle_segv=1:detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
if [ "$kind" = fuzz ]; then
    ./kernels -max_total_time="$seconds" -max_len=160 -print_final_stats=1 "$build/corpus" "$root/tests/fuzz/corpus"
else
    "${launch[@]}" ./kernels "$seconds" "$most_team" "$root"/tests/fuzz/corpus/*
fi
[ $# -gt 0 ] || exit 0

[ "$kind" != fuzz ] || { echo "tools/sanitize.sh: pytest arguments go with address or thread" >&2 && exit 2; }
cd "$root"
python=${PYTHON:-python}
[ "$kind" = address ] || set -- -k "not openmp" "$@" # libgomp is not instrumented
mkdir -p "$build/package/fastinfer"
for file in fastinfer/*; do
    case $file in *.so) ;; *) ln -sfn "$root/$file" "$build/package/$file" ;; esac
done
FASTINFER_SANITIZE=$kind "$python" setup.py -q build_ext --build-lib "$build/package" --build-temp "$build/temporary"
# numpy's and OpenBLAS's own threads are not instrumented: the sanitizer would not see what they wait for.
LD_PRELOAD=$("$compiler" -print-file-name="$library") PYTHONPATH=$build/package PYTHONMALLOC=malloc OPENBLAS_NUM_THREADS=1 \
    "${launch[@]}" "$python" -X faulthandler -c '
import sys
sys.path.pop(0)  # the folder that this runs in, which holds the package with the module that is not instrumented
import pytest
from fastinfer import _cpu
assert "build" in _cpu.__file__, _cpu.__file__
sys.exit(pytest.main(sys.argv[1:]))' -p no:cacheprovider "$@"
