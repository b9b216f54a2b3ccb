#!/usr/bin/env bash
# `plan` predicts the peak of a training process's resident memory within 5 % of what the kernel reports. Where the data set and the buffer
# are large, that is the arena and at most 120 MiB, and neither a checkpoint nor going on from one takes more.
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
common=(--recipe sada-jem --device cpu --threads 2 --depth 10 --width 2 --sgld-steps 1)
# what a run can go back to comes with its iterations, and is looked at apart
common+=(--on-divergence stop)
small=("${common[@]}" --data fashion-mnist --buffer-size 4000 --n-valid 1000)
full=("${common[@]}" --data cifar10 --data-dir "$PWD/cifar10" --init uniform)

. "$(dirname "${BASH_SOURCE[0]}")/../checks.sh"
if sanitized; then
    echo 'sanitizers take memory of their own'
    exit 77
fi

failures=0
fail() {
    printf 'FAILED: %s\n' "$1"
    failures=$((failures + 1))
}

# MOST_MIB_BESIDES_ARENA COMMAND...: runs it, and holds its peak against plan.out
peak_is_as_planned() {
    tail -n 1 plan.out | python3 -c '
import json, os, subprocess, sys
plan = json.load(sys.stdin)
predicted, arena, most = plan["peak_process_bytes"], plan["peak_bytes"], float(sys.argv[1]) * 2**20
process = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
status, usage = os.wait4(process.pid, 0)[1:]
measured = usage.ru_maxrss * 1024
print(f"arena {arena / 2**20:.0f} MiB, predicted {predicted / 2**20:.0f}, measured {measured / 2**20:.0f}, "
      f"{100 * (predicted / measured - 1):+.1f} %")
sys.exit(0 if status == 0 and abs(predicted / measured - 1) <= 0.05 and measured <= arena + most else 1)
' "$@"
}

for variant in '--precision f32' '--precision f32 --recompute on --ema 0.9' '--precision bf16' '--labels-per-class 4000 --init gaussian'; do
    read -r -a extra <<<"$variant"
    if ! "$program" plan "${small[@]}" "${extra[@]}" --json >plan.out 2>plan.err; then
        [[ $variant == *bf16* ]] && grep -q 'AVX512_BF16 or AMX' plan.err && echo "left out, this CPU has no bf16: $variant" && continue
        cat plan.err && fail "$variant" && continue
    fi
    rm -rf run
    peak_is_as_planned 120 "$program" train "${small[@]}" "${extra[@]}" --iterations 1 --out run --quiet || fail "$variant"
done

rolling=("${small[@]}" --on-divergence rollback --batch-size 4 --gen-batch-size 4)
rm -rf run
"$program" plan "${rolling[@]}" --json >plan.out || exit 1
peak_is_as_planned 120 "$program" train "${rolling[@]}" --iterations 210 --out run --quiet || fail 'two good states to go back to'

mkdir cifar10
python3 - <<'END' || exit 1
import os
RECORD = 1 + 3 * 32 * 32
noise = bytearray(os.urandom(10000 * RECORD))
noise[::RECORD] = bytes(i % 10 for i in range(10000))
with open("cifar10/test_batch.bin", "wb") as file:
    file.write(noise)
for i in range(1, 6):
    os.link("cifar10/test_batch.bin", f"cifar10/data_batch_{i}.bin")
END
rm -rf run
"$program" plan "${full[@]}" --json >plan.out || exit 1
peak_is_as_planned 120 "$program" train "${full[@]}" --iterations 1 --out run --quiet || fail '50,000 images, a buffer of 10,000'
peak_is_as_planned 120 "$program" train --resume --threads 2 --iterations 2 --out run --quiet || fail 'the same, resumed'
exit $((failures > 0))
