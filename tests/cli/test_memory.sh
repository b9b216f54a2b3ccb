#!/usr/bin/env bash
# `plan` predicts the peak of a training process's resident memory within 5 % of what the kernel reports.
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
settings=(--recipe sada-jem --data fashion-mnist --device cpu --threads 2 --depth 10 --width 2 --sgld-steps 1 --buffer-size 4000 --n-valid 1000)

flags=$("$program" info --json 2>/dev/null | tail -n 1)
if [[ $flags == *-fsanitize* ]]; then
    echo 'sanitizers take memory of their own'
    exit 77
fi

failures=0
for variant in '--precision f32' '--precision f32 --recompute on --ema 0.9' '--precision bf16'; do
    read -r -a extra <<<"$variant"
    if ! "$program" plan "${settings[@]}" "${extra[@]}" --json >plan.out 2>plan.err; then
        [[ $variant == *bf16* ]] && grep -q 'AVX512_BF16 or AMX' plan.err && echo "left out, this CPU has no bf16: $variant" && continue
        cat plan.err && failures=$((failures + 1)) && continue
    fi
    rm -rf run
    tail -n 1 plan.out | python3 -c '
import json, os, subprocess, sys
predicted = json.load(sys.stdin)["peak_process_bytes"]
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
status, usage = os.wait4(process.pid, 0)[1:]
measured = usage.ru_maxrss * 1024
print(f"predicted {predicted / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB, {100 * (predicted / measured - 1):+.1f} %")
sys.exit(0 if status == 0 and abs(predicted / measured - 1) <= 0.05 else 1)
' "$program" train "${settings[@]}" "${extra[@]}" --iterations 1 --out run --quiet || {
        printf 'FAILED: %s\n' "$variant"
        failures=$((failures + 1))
    }
done
exit $((failures > 0))
