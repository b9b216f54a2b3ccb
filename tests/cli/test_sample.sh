#!/usr/bin/env bash
# What `jem_engine sample` does beyond a sheet of samples: given images, restoration, courses of chains, neighbours, diagnostics, MALA.
# Called by tools/test as `bash test_sample.sh PROGRAM` in an empty folder.
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/tests/checks.sh"
. "$root/tests/made_images.sh"
refused() { # PATTERN ARGUMENTS...
    local pattern=$1
    shift
    run 2 sample --checkpoint $weights --quiet "$@" || return
    grep -q -e "$pattern" err || fail "the error does not say \"$pattern\": jem_engine sample $*" err
    [[ ! -s out ]] || fail "an error came with a result: jem_engine sample $*" out
}
sample() { run 0 sample --checkpoint $weights --threads 1 --quiet --json "$@"; }
json() { # EXPRESSION: true of the result j, in Python
    tail -n 1 out | python3 -c "import json, sys; j = json.load(sys.stdin); sys.exit(0 if ($1) else 1)" || fail "not true of the result: $1" out
}
# FILE EXPRESSION: true of its tensors t, as pairs of shape and values, in Python
raw() {
    python3 - "$@" <<'END' || fail "not true of $1: $2"
import array, json, sys

with open(sys.argv[1], "rb") as file:
    header, data = json.loads(file.read(int.from_bytes(file.read(8), "little"))), file.read()
t = {n: (h["shape"], array.array({"F32": "f", "I64": "q"}[h["dtype"]], data[slice(*h["data_offsets"])])) for n, h in header.items() if n != "__metadata__"}
sys.exit(0 if eval(sys.argv[2]) else 1)
END
}
size() { python3 -c 'import struct, sys; print("%dx%d" % struct.unpack(">II", open(sys.argv[1], "rb").read(24)[16:]))' "$1"; }
weights=run/checkpoints/last.safetensors
run 0 train --recipe sada-jem --data mnist --data-dir data --depth 10 --width 1 --batch-size 8 --gen-batch-size 4 --sgld-steps 1 \
    --buffer-size 20 --warmup-iterations 0 --iterations 2 --threads 1 --out run --quiet || exit 1

# --- given images and their energies --------------------------------------------------------------------------------------------------
sample --from test --pick worst --count 8 --raw test.safetensors
json 'j["steps"] == 0 and [s["lse"] for s in j["samples"]] == sorted(s["lse"] for s in j["samples"])'
json 'all(s["true_label"] == s["source"] % 10 for s in j["samples"])'
raw test.safetensors '"labels" in t and t["sources"][0] == [8] and list(t["lse"][1]) == sorted(t["lse"][1]) and "frames" not in t'
sample --from train --count 64 --raw train.safetensors
raw train.safetensors 'sorted(t["sources"][1]) == list(range(64))'
sample --from test --count 1 --sheet one.png
sample --from images:one.png --raw picture.safetensors
raw picture.safetensors 't["images"][0] == [1, 1, 28, 28] and "true_labels" not in t'
mkdir pictures && cp one.png pictures/a.png && cp one.png pictures/b.png
sample --from images:pictures --steps 1 && json 'j["images"] == 2 and j["steps"] == 1'
run 0 sample --checkpoint $weights --from test --pick worst --count 3 --quiet && grep -q 'p(y|x)' out || fail 'no scores are shown' out

sample --from test --count 4 --stretch --sheet bright.png --raw bright.safetensors && sample --from test --count 4 --sheet plain.png && cmp -s bright.png plain.png && fail '--stretch changes nothing'

# --- restoration ----------------------------------------------------------------------------------------------------------------------
sample --from test --damage half --steps 2 --keep-known --count 4 --raw half.safetensors --sheet half.png
json 'j["rms_damaged"] > 0 and j["rms_restored"] > 0'
raw half.safetensors 'all(t["images"][1][n * 784:n * 784 + 392] == t["originals"][1][n * 784:n * 784 + 392] for n in range(4))'
raw half.safetensors 'all(t["images"][1][n * 784 + 392:n * 784 + 784] != t["damaged"][1][n * 784 + 392:n * 784 + 784] for n in range(4))'
[[ $(size half.png) == $((3 * 58 - 2))x$((4 * 58 - 2)) ]] || fail "the sheet has no original, damaged and restored: $(size half.png)"
sample --from test --damage half:grey --steps 0 --count 4 --raw grey.safetensors
raw grey.safetensors 'all(v == 0 for n in range(4) for v in t["images"][1][n * 784 + 392:n * 784 + 784])'
sample --from test --damage noise:0.1 --steps 0 --count 4 && json '0 < j["rms_damaged"] == j["rms_restored"] < 15'

# --- the course of chains, classes and neighbours ---------------------------------------------------------------------------------------
sample --from noise --steps 5 --snapshots 2 --count 3 --raw course.safetensors --sheet course.png
json 'j["frame_steps"] == [0, 2, 4, 5]'
raw course.safetensors 't["frames"][0] == [3, 4, 1, 28, 28] and list(t["frame_steps"][1]) == [0, 2, 4, 5]'
raw course.safetensors 'all(t["frames"][1][(n * 4 + 3) * 784:(n * 4 + 4) * 784] == t["images"][1][n * 784:(n + 1) * 784] for n in range(3))'
[[ $(size course.png) == $((4 * 58 - 2))x$((3 * 58 - 2)) ]] || fail "the strip has another size: $(size course.png)"
sample --towards class --steps 30 --sgld-step-size 5 --sampling-norm running --count 10 --raw aimed.safetensors
raw aimed.safetensors 'sorted(t["targets"][1]) == list(range(10))'
sample --from noise --count 10 --steps 0 --raw before.safetensors
sample --from noise --count 10 --steps 30 --towards class --class 3 --sampling-norm running --sgld-step-size 5 --raw after.safetensors
raw after.safetensors 'all(l == 3 for l in t["labels"][1]) and set(t["targets"][1]) == {3}'
sample --from test --min-confidence 0.05 --count 32 && json 'all(s["confidence"] >= 0.05 for s in j["samples"])'
run 1 sample --checkpoint $weights --from test --min-confidence 1 --quiet && grep -q 'confidence of 1' err || fail 'no sample is that sure' err
sample --from train --count 5 --neighbours 2 --raw near.safetensors --sheet near.png
raw near.safetensors 't["neighbours"][0] == [5, 2] and all(d == 0 for d in t["neighbour_distances"][1][::2])'
[[ $(size near.png) == $((4 * 58 - 2))x$((5 * 58 - 2)) ]] || fail "the sheet has no neighbours: $(size near.png)"
sample --from train --count 5 --neighbours 1 --neighbours-by features && json 'all(s["neighbour_distances"][0] < 1e-3 for s in j["samples"])'

# --- diagnostics and MALA ---------------------------------------------------------------------------------------------------------------
sample --from noise --steps 6 --count 4 --diagnose course.csv --raw plain.safetensors
[[ $(wc -l <course.csv) == 8 ]] || fail 'course.csv has no row a step' course.csv
awk -F, 'NF != 11 { exit 1 }' course.csv || fail 'course.csv has rows of other lengths' course.csv
sample --from noise --steps 6 --count 4 --raw again.safetensors
cmp plain.safetensors again.safetensors || fail 'looking changes the chains'
sample --from noise --steps 6 --count 4 --mala --sampling-norm running --sgld-noise 1e-3 --sgld-step-size 5e-7 --diagnose mala.csv
json 'j["diagnostics"]["acceptance"] > 0.9 and abs(j["temperature"] - 1) < 1e-9'
grep -q '^6,' mala.csv || fail 'mala.csv has no last row' mala.csv

rm -f samples.png

# --- refused ----------------------------------------------------------------------------------------------------------------------------
refused 'start at no image' --damage half
refused 'no pixel known' --from test --damage noise --keep-known
refused '--damage is "third"' --from test --damage third
refused '--damage is "noise:x"' --from test --damage noise:x
refused '--from is "images:"' --from images:
refused '--from is "somewhere"' --from somewhere
refused "nowhere" --from images:nowhere
refused '--sampling-norm running' --mala --sgld-noise .1
refused 'no temperature' --mala --sampling-norm running --sgld-noise 0
refused 'no step to judge' --mala --sampling-norm running --sgld-noise .1 --steps 0
refused 'beyond 0.5' --mala --sampling-norm running --sgld-noise .6
refused 'whole images' --mala --from test --damage half --keep-known
refused '--neighbours is 65' --neighbours 65
refused 'GiB' --snapshots 1 --steps 100000
refused '--min-confidence' --min-confidence 2
refused '--diagnose would overwrite --checkpoint' --diagnose $weights
[[ ! -e samples.png ]] || fail 'an error left a sheet'

# --- an interrupt -----------------------------------------------------------------------------------------------------------------------
"$program" sample --checkpoint $weights --from noise --steps 100000 --count 4 --sheet never.png --threads 1 >out 2>err </dev/null &
job=$!
for ((i = 0; i < 100; ++i)); do grep -q Sampling err && break || sleep 0.1; done
kill -INT $job
wait $job
code=$?
[[ $code == 130 ]] && grep -q Interrupted err || fail "an interrupted chain ends with $code" err
[[ ! -e never.png ]] || fail 'a sheet of chains that had not ended'
exit $((failures > 0))
