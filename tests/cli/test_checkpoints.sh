#!/usr/bin/env bash
# Weights that a run keeps. Called by tools/test as `bash test_checkpoints.sh PROGRAM` in an empty folder.
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
failures=0
fail() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n' "$1"
    [[ ! -s ${2:-} ]] || sed 's/^/    /' "$2" | head -n 8
}
run() { # CODE ARGUMENTS...
    local wanted=$1 code=0
    shift
    timeout 60 "$program" "$@" >out 2>err </dev/null || code=$?
    [[ $code == "$wanted" ]] && return
    fail "exit code $code in place of $wanted: jem_engine $*" err
    return 1
}
json() { # EXPRESSION: true of the result j, in Python
    tail -n 1 out | python3 -c "import json, sys; j = json.load(sys.stdin); sys.exit(0 if ($1) else 1)" || fail "not true of the result: $1" out
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
json "abs(j[\"disk_bytes\"] - $(cat first/checkpoints/{last,best,last.state}.safetensors | wc -c)) < 0.05 * j[\"disk_bytes\"]"

((failures == 0)) || { echo "$failures failures" && exit 1; }
