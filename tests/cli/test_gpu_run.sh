#!/usr/bin/env bash
# tools/gpu_run in calls of a few seconds, on a CPU: it trains, goes on where a call ended, evaluates, and packs what others need.
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tests/made_images.sh
source "$tests/made_images.sh"
# shellcheck source=tests/checks.sh
source "$tests/checks.sh"
if sanitized; then
    echo 'with sanitizers an iteration takes too long for calls of seconds; other scripts train with them'
    exit 77
fi
flags=(--out out --device cpu --precision f32 --data mnist --data-dir data --depth 10 --width 1 --programs "$(dirname "$program")"
    --minutes 0.5 --evaluation-minutes 0.1 --piece-seconds 12 --stopping-seconds 4 --ood-data uniform)
# So small a rate that the run, however many epochs the machine finds time for, does not diverge.
more=(--batch-size 16 --gen-batch-size 16 --buffer-size 64 --sgld-steps 2 --lr 0.0001 --threads 1)

calls=0 code=75
while ((code == 75 && calls < 20)); do
    calls=$((calls + 1)) code=0
    "$tests/../tools/gpu_run" "${flags[@]}" -- "${more[@]}" >"log$calls" 2>&1 </dev/null || code=$?
    [[ $calls != 1 ]] || cp out/gpu_run.json first.json
done
((code == 0)) || fail "exit code $code after $calls calls" "log$calls"
((calls > 1)) || fail 'it was over in one call' log1
cmp -s first.json out/gpu_run.json || fail 'what the first call settled on has changed'
epochs=$(sed -E 's/.*"epochs": ([0-9]+).*/\1/' first.json)
last=$(grep -v '"event"' out/run/metrics.jsonl | tail -n 1)
[[ $last == *"\"epoch\":$((epochs - 1)),"* && $last == *test_accuracy* ]] || fail "the run did not come to the end of its $epochs epochs: $last"
tar tzf out/result.tar.gz >packed || fail 'the packed file cannot be read'
for wanted in run/config.json run/metrics.jsonl run/evaluation/last/evaluation.json; do
    grep -qx "$wanted" packed || fail "$wanted is not packed" packed
done
! grep -q checkpoints packed || fail 'checkpoints are packed'
(($(grep -c '^run/samples/.*png' packed) <= 10 && $(grep -c '^run/samples/.*png' packed) > 0)) || fail 'no sheets are packed, or too many'

# Too little time for an epoch: said, with the figures.
"$tests/../tools/gpu_run" "${flags[@]}" --out other --minutes 0.002 --evaluation-minutes 0.001 -- "${more[@]}" >log 2>&1 </dev/null && fail 'no time is enough' log
grep -q 'Give more --minutes' log || fail 'what to do is not said' log
"$tests/../tools/gpu_run" "${flags[@]}" --minutes 1 --evaluation-minutes 2 >log 2>&1 </dev/null
[[ $? == 2 ]] || fail 'exit code of a wrong argument' log
((failures == 0))
