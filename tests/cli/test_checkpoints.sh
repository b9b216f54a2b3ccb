#!/usr/bin/env bash
# Weights that a run keeps, and those that it begins with. Called by tools/test as `bash test_checkpoints.sh PROGRAM` in an empty folder.
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/tests/checks.sh"
refused() { # PATTERN ARGUMENTS...
    local pattern=$1
    shift
    run 2 "$@" || return
    grep -q -e "$pattern" err || fail "the error does not say \"$pattern\": jem_engine $*" err
}
value() { sed -n "s/^  \"$2\": \(.*[^,]\),\{0,1\}$/\1/p" "$1/config.json"; } # FOLDER KEY
json() { # EXPRESSION: true of the result j, in Python
    tail -n 1 out | python3 -c "import json, sys; j = json.load(sys.stdin); sys.exit(0 if ($1) else 1)" || fail "not true of the result: $1" out
}
# PATTERN FILE OTHER: whether the tensors of FILE whose names match the pattern have the same bytes in OTHER
same_tensors() {
    python3 - "$@" <<'END'
import json, re, sys

def tensors(path):
    with open(path, "rb") as file:
        header, data = json.loads(file.read(int.from_bytes(file.read(8), "little"))), file.read()
    return {name: data[slice(*t["data_offsets"])] for name, t in header.items() if re.search(sys.argv[1], name)}

one, other = map(tensors, sys.argv[2:])
sys.exit(0 if one and one == other else 1)
END
}

. "$root/tests/made_images.sh"
small=(--data mnist --data-dir data --depth 10 --width 1 --batch-size 8 --gen-batch-size 8 --sgld-steps 1 --buffer-size 20
    --warmup-iterations 0 --sample-interval 0 --threads 1)
train=(train --recipe sada-jem "${small[@]}")

# --- what is kept of each epoch: 64 images are 8 iterations ----------------------------------------------------------------------------
run 0 "${train[@]}" --iterations 25 --archive-interval 2 --out first --quiet || exit 1
[[ $(cd first/checkpoints && echo epoch_*) == epoch_0002.safetensors ]] || fail "kept: $(cd first/checkpoints && echo epoch_*)"
cp -r first resumed
run 0 train --resume --out resumed --iterations 32 --threads 1 --quiet
cmp -s resumed/checkpoints/epoch_0002.safetensors first/checkpoints/epoch_0002.safetensors || fail 'resuming changed what was kept'
cmp -s resumed/checkpoints/epoch_0004.safetensors resumed/checkpoints/last.safetensors || fail 'what is kept is not the last checkpoint'
run 0 evaluate --checkpoint first/checkpoints/epoch_0002.safetensors --metrics accuracy --threads 1 --quiet --json && json '"accuracy" in j'
run 0 sample --checkpoint first/checkpoints/epoch_0002.safetensors --from buffer --count 4 --sheet epoch.png --threads 1 --quiet --json &&
    json 'j["images"] == 4'
run 0 plan --recipe sada-jem "${small[@]}" --epochs 5 --archive-interval 2 --json
with=$(tail -n 1 out)
run 0 plan --recipe sada-jem "${small[@]}" --epochs 5 --json
one=$(stat -c %s first/checkpoints/epoch_0002.safetensors)
json "abs($with[\"disk_bytes\"] - j[\"disk_bytes\"] - 2 * $one) < 0.1 * $one"
# of the run's end, when there are as many states as --keep allows
json "abs(j[\"disk_bytes\"] - $(cat first/checkpoints/{last,best,last.state,last.state}.safetensors | wc -c)) < 0.05 * j[\"disk_bytes\"]"

# --- another run's weights and buffer -----------------------------------------------------------------------------------------------------
run 0 "${train[@]}" --iterations 0 --seed 7 --start-from first/checkpoints/last.safetensors --out second
grep -q 'Starting from .*last.safetensors (iteration 25), and from the replay buffer of .*last.state.safetensors' err || fail 'the start is not told' err
[[ $(value second start_from) == "\"$PWD/first/checkpoints/last.safetensors\"" ]] || fail "start_from is $(value second start_from)"
same_tensors '^(replay_buffer|f\..*|class_output.*)$' {first,second}/checkpoints/last.state.safetensors || fail 'the second run has not the weights and the buffer of the first'
run 0 "${train[@]}" --iterations 0 --seed 7 --out random --quiet
[[ $(value random start_from) == '""' ]] || fail 'a run that started from nothing says otherwise'
! same_tensors '^f\.layer' {random,second}/checkpoints/last.safetensors || fail 'the weights are those of the seed'

# resumed without the file, from wherever
mv first moved
run 0 train --resume --out second --iterations 2 --threads 1 --quiet
mv moved first
refused '--start-from beside --resume' train --resume --out second --start-from first/checkpoints/last.safetensors
run 0 train --recipe softmax "${small[@]}" --iterations 1 --start-from first/checkpoints/epoch_0002.safetensors --out classifier --quiet

# a bare file with the buffer in it, as a converted one
python3 - first/checkpoints/last.state.safetensors bare.safetensors <<'END'
import json, sys

with open(sys.argv[1], "rb") as file:
    header, data = json.loads(file.read(int.from_bytes(file.read(8), "little"))), file.read()
del header["__metadata__"]
kept, out = {}, b""
for name, tensor in header.items():
    if name.startswith("velocity.") or name.endswith("num_batches_tracked"):
        continue
    part = data[slice(*tensor["data_offsets"])]
    kept[name] = {**tensor, "data_offsets": [len(out), len(out) + len(part)]}
    out += part
text = json.dumps(kept).encode()
with open(sys.argv[2], "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text + out)
END
run 0 "${train[@]}" --iterations 0 --start-from bare.safetensors --out converted --quiet
same_tensors '^(replay_buffer|f\..*)$' {first,converted}/checkpoints/last.state.safetensors || fail 'a bare file is not what the run starts with'

# --- what does not fit, before anything is written ------------------------------------------------------------------------------------
refused '--start-from: it is empty' "${train[@]}" --start-from '' --out never
refused 'none.safetensors' "${train[@]}" --start-from none.safetensors --out never
refused 'Give --buffer-size 20' "${train[@]}" --buffer-size 30 --start-from bare.safetensors --out never
refused 'shape of f.layer1' "${train[@]}" --width 2 --start-from bare.safetensors --out never
grep -q '^  and [0-9]* more of another shape' err || fail 'the other differences are not counted' err
[[ ! -e never ]] || fail 'a refused command made its folder'

# --- what is measured while a run trains -------------------------------------------------------------------------------------------------
run 0 "${train[@]}" --iterations 20 --n-valid 16 --metric-interval 1 --metrics ece,fid --features first/checkpoints/last.safetensors --out measured --quiet
for key in test_ece_15 valid_ece_15 valid_ece_adaptive frechet_distance; do
    found=$(grep -c "\"$key\"" measured/metrics.jsonl)
    [[ $found == $([[ $key == test_* ]] && echo 0 || echo 4) ]] || fail "$found log lines have $key" measured/metrics.jsonl
done
refused 'not measured while training' "${train[@]}" --metric-interval 1 --metrics pgd --out never
refused 'needs a network for features' "${train[@]}" --metric-interval 1 --metrics fid --out never
refused 'no metric "sharpness"' "${train[@]}" --metric-interval 1 --metrics sharpness --out never
refused 'no such file' "${train[@]}" --metric-interval 1 --metrics fid --features inception:none.safetensors --out never
[[ ! -e never ]] || fail 'a run that was refused left a folder'

((failures == 0)) || { echo "$failures failures" && exit 1; }
