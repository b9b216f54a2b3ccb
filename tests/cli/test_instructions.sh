#!/usr/bin/env bash
# Instructions that one small f32 iteration takes on one thread, against the figure in tests/instructions.json. Times depend on the machine
# and on what else it does; this number does not, so that work done twice shows before it lands.
#   bash tests/cli/test_instructions.sh PROGRAM            compare
#   bash tests/cli/test_instructions.sh PROGRAM --update   store what this build takes, after a change that is meant to change it
# Figures belong to a compiler, a build type and a oneDNN: the same source is other instructions there. Where none is stored, skipped.
set -euo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
mode=${2:---check}
stored=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/instructions.json
# Per cent. Repetitions differ by 0.001 % (paths and the environment move what is copied by alignment), and valgrind shows the program the
# same AVX2 CPU with the same caches on every machine; what is left are patch releases of compiler, libc and libgomp. Doing the norms'
# backward pass twice is 3.2 %.
margin=2

skip() {
    echo "$1"
    exit 77
}
command -v valgrind >/dev/null || skip 'valgrind is missing (tools/setup --dev installs it)'
# shellcheck disable=SC2016  # Python's text
build=$("$program" info --json | python3 -c 'import json, sys
j = json.load(sys.stdin)
print("sanitized" if "-fsanitize" in j["flags"] else "{}, {}, oneDNN {}".format(j["compiler"].strip(), j["build_type"], j["libraries"]["oneDNN"]))')
[[ $build != sanitized ]] || skip 'valgrind does not run sanitized programs'
figure() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1])).get(sys.argv[2], ""))' "$stored" "$build"; }
want=$(figure)
[[ -n $want || $mode == --update ]] || skip "no figure is stored for $build (--update stores one)"

# valgrind knows AVX2 and nothing wider. With GOMP_SPINCOUNT set the program does not start itself anew (tools/jem_engine/main.cc).
export DNNL_MAX_CPU_ISA=AVX2 GOMP_SPINCOUNT=1000
# counted REPEAT: instructions of the whole program
counted() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" bench --device cpu --precision f32 --threads 1 --depth 10 --width 1 \
        --in-channels 3 --image-size 8 --num-classes 10 --batch-size 8 --gen-batch-size 4 --sgld-steps 2 --warmup 0 --repeat "$1" --quiet \
        >"$scratch/log$1" 2>&1 || { cat "$scratch/log$1" >&2 && return 1; }
    sed -n 's/.*Collected : *//p' "$scratch/log$1"
}
# What two iterations take more than one: starting the program and choosing convolutions fall out. Both at once, for two cores.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
counted 2 >"$scratch/two" &
one=$(counted 1)
wait $!
two=$(<"$scratch/two")
got=$((two - one))
((got > 0)) || { echo "FAILED: no count came of it ($one, $two)" && exit 1; }

if [[ $mode == --update ]]; then
    python3 - "$stored" "$build" "$got" <<'END'
import json, sys
path, build, got = sys.argv[1:]
with open(path) as file:
    figures = json.load(file)
figures[build] = int(got)
with open(path, "w") as file:
    file.write(json.dumps(figures, indent=2, sort_keys=True) + "\n")
END
    echo "$build: $got instructions an iteration (was ${want:-not stored}), written"
    exit
fi
change=$(awk -v got="$got" -v want="$want" 'BEGIN { printf "%+.2f", 100 * (got - want) / want }')
printf '%s\ninstructions an iteration: got %d, stored %d: %s %%, margin %d %%\n' "$build" "$got" "$want" "$change" "$margin"
off=$((got > want ? got - want : want - got))
((100 * off > margin * want)) || exit 0
echo "FAILED: if the change is meant, store the new figure: bash tests/cli/test_instructions.sh $program --update"
exit 1
