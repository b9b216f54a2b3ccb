#!/usr/bin/env bash
# Kills training at random moments, resumes it, and compares what is left with a run that was never disturbed: tensors byte for
# byte, the log but for its times. Also: signals that ask to stop end with a checkpoint. Usage: test_kill.sh PROGRAM
# With JEM_KILLS=N: exactly N kills of a longer run, and nothing else (tests/soak).
set -euo pipefail

program=$1
data=/usr/share/datasets/fashion-mnist
if [[ ! -d $data ]]; then
    echo "no Fashion-MNIST in $data (tools/setup installs it)"
    exit 77
fi
RANDOM=${JEM_TEST_SEED:-$$}
echo "seed $RANDOM"
fail() {
    printf 'FAILED: %s\n' "$1"
    exit 1
}

most_kills=${JEM_KILLS:-8} iterations=40 interval=3
options=(--recipe sada-jem --data fashion-mnist --depth 10 --width 1 --batch-size 16 --gen-batch-size 8 --sgld-steps 1
    --buffer-size 50 --n-valid 100 --checkpoint-interval "$interval" --log-interval 1 --warmup-iterations 5 --threads 1 --quiet)
if [[ -n ${JEM_KILLS:-} ]]; then
    iterations=$((20 * most_kills)) # a kill comes after some seven
    options+=(--lr 1e-4)            # so many at the recipe's rate diverge
fi
options+=(--iterations "$iterations")
start() { # FOLDER FLAGS...; sets pid, the program's own: a function in the background would be a shell's
    "$program" train --out "$1" "${options[@]}" "${@:2}" >>"$1.out" 2>>"$1.err" </dev/null &
    pid=$!
}
train() {
    start "$@"
    wait "$pid"
}
lines() { # FOLDER: log lines so far
    if [[ -e $1/metrics.jsonl ]]; then wc -l <"$1/metrics.jsonl"; else echo 0; fi
}

# The iteration, then every tensor's bytes and the metadata without the time spent, as text.
cat >show.py <<'PYTHON'
import hashlib, json, sys
with open(sys.argv[1], "rb") as f:
    size = int.from_bytes(f.read(8), "little")
    header, data = json.loads(f.read(size)), f.read()
metadata = header.pop("__metadata__")
progress = json.loads(metadata["progress"])
progress.pop("seconds")
if len(sys.argv) > 2:
    print(progress["iteration"])
    sys.exit()
print("progress", progress)
config = json.loads(metadata["config"])
print("config", sorted(config.items()))
for name in sorted(header):
    begin, end = header[name]["data_offsets"]
    assert 0 <= begin <= end <= len(data)
    print(name, header[name]["dtype"], header[name]["shape"], hashlib.sha256(data[begin:end]).hexdigest())
PYTHON
cat >log.py <<'PYTHON'
import json, sys
for line in open(sys.argv[1]):
    values = json.loads(line)
    assert values.pop("time_s") >= 0 and values.pop("images_per_s") >= 0
    print(values)
PYTHON
show_run() { # FOLDER: everything that must not depend on kills
    local file
    for file in last.state last best; do
        echo "== $file"
        python3 show.py "$1/checkpoints/$file.safetensors"
    done
    echo "== log"
    python3 log.py "$1/metrics.jsonl"
}

train whole || fail "the undisturbed run ended with exit code $?: $(tail -n 3 whole.err)"
show_run whole >whole.txt
[[ $(lines whole) == "$iterations" ]] || fail "the undisturbed run logged $(lines whole) lines, $iterations expected"

# Each time the run may get a random number of lines further, then it is killed a random moment later.
kills=0 lost=0
for ((attempt = 0; attempt < most_kills; ++attempt)); do
    before=$(lines killed)
    further=$((RANDOM % 12))
    start killed --resume
    for ((poll = 0; poll < 3000 && $(lines killed) < before + further; ++poll)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.005
    done
    # without a line to wait for: anywhere in the start, where data are read and the buffer is filled
    if ((further == 0)); then sleep "0.$((RANDOM % 10))"; fi
    sleep "0.0$((RANDOM % 100))"
    if kill -KILL "$pid" 2>/dev/null; then kills=$((kills + 1)); fi
    status=0
    wait "$pid" 2>/dev/null || status=$?
    if ((status == 0)); then break; fi
    ((status == 137)) || fail "a resumed run ended with exit code $status: $(tail -n 3 killed.err)"
    # Whatever is there is whole.
    for file in killed/checkpoints/*.safetensors; do
        [[ ! -e $file ]] || python3 show.py "$file" >/dev/null || fail "$file is damaged after a kill"
    done
    # At most what was done since a checkpoint was due is lost.
    kept=0
    [[ ! -e killed/checkpoints/last.state.safetensors ]] || kept=$(python3 show.py killed/checkpoints/last.state.safetensors iteration)
    now_lost=$(($(lines killed) - kept))
    ((now_lost <= interval)) || fail "a kill lost $now_lost iterations, with a checkpoint every $interval"
    lost=$((lost > now_lost ? lost : now_lost))
done
train killed --resume || fail "the last run ended with exit code $?: $(tail -n 3 killed.err)"
echo "killed $kills times, losing at most $lost iterations (a checkpoint every $interval), of $iterations"
((kills > 0)) || fail "no run lived long enough to be killed"
show_run killed >killed.txt
diff whole.txt killed.txt >difference.txt || fail "the killed run differs: $(head -n 10 difference.txt)"
if [[ -n ${JEM_KILLS:-} ]]; then
    ((kills == most_kills)) || fail "the run ended after $kills kills, $most_kills wanted"
    exit 0
fi

# A signal that asks to stop: the iteration is finished, a checkpoint left, the exit code is as shells report it; then as before. No job control here, so a
# background process ignores SIGINT from its start; the program sets its own handler.
interrupted() { # FOLDER SIGNAL CODE
    local status=0 poll
    start "$1"
    for ((poll = 0; poll < 3000 && $(lines "$1") < 2; ++poll)); do sleep 0.005; done
    kill "-$2" "$pid" || fail "the run ended before it could be interrupted"
    wait "$pid" || status=$?
    ((status == $3)) || fail "SIG$2 ended with exit code $status, $3 expected"
    grep -q '^Stopping: ' "$1.err" || fail "SIG$2 was not acknowledged"
    [[ -e $1/checkpoints/last.state.safetensors && -e $1/checkpoints/last.safetensors ]] || fail "SIG$2 left no checkpoint"
    echo "SIG$2 after iteration $(python3 show.py "$1/checkpoints/last.safetensors" iteration)"
    train "$1" --resume || fail "the run could not be resumed after SIG$2: $(tail -n 3 "$1.err")"
    show_run "$1" >"$1.txt"
    diff whole.txt "$1.txt" >difference.txt || fail "the run interrupted by SIG$2 differs: $(head -n 10 difference.txt)"
}
interrupted by_int INT 130
interrupted by_term TERM 143
interrupted by_hup HUP 129
interrupted by_usr1 USR1 138

# A second one ends at once, also in the middle of an iteration, without a checkpoint. SIGHUP that was ignored at the start stays so.
"$program" train --out twice "${options[@]}" --depth 28 --width 4 --iterations 3 --sgld-steps 40 --checkpoint-interval 0 >twice.out 2>twice.err </dev/null &
pid=$!
for ((poll = 0; poll < 3000; ++poll)); do
    [[ ! -e twice/config.json ]] || break
    sleep 0.02
done
sleep 1
kill -INT "$pid"
sleep 0.5
kill -HUP "$pid"
grep -q '^Stopping: ' twice.err || fail 'a first interrupt in a long iteration is not acknowledged at once'
kill -INT "$pid"
status=0
wait "$pid" || status=$?
((status == 130)) || fail "a second interrupt ended with exit code $status, 130 expected"
grep -q '^Ended at once, without a checkpoint' twice.err || fail 'a second interrupt is not acknowledged'
(
    trap '' HUP
    exec "$program" train --out nohup "${options[@]}" --iterations 8 >nohup.out 2>nohup.err </dev/null
) &
pid=$!
for ((poll = 0; poll < 3000 && $(lines nohup) < 1; ++poll)); do sleep 0.005; done
kill -HUP "$pid" 2>/dev/null || true
wait "$pid" || fail "an ignored SIGHUP ended the run with exit code $?"

# Whoever reads the log ends: the run goes on.
status=0
{
    "$program" train --out unread "${options[@]/--quiet/--threads=1}" 2>&1 >/dev/null </dev/null || echo "$?" >unread.status
} | head -n 1 >/dev/null
[[ ! -e unread.status ]] || fail "a dead reader of the log ended the run with exit code $(cat unread.status)"
[[ $(lines unread) == 40 ]] || fail "a run whose log nobody reads logged $(lines unread) lines, 40 expected"

# The command to go on with can be pasted, whatever the folder's name.
"$program" train --out "it's here" "${options[@]/--quiet/--threads=1}" --iterations 100000 >odd.out 2>odd.err </dev/null &
pid=$!
for ((poll = 0; poll < 3000 && $(lines "it's here") < 1; ++poll)); do sleep 0.005; done
kill -TERM "$pid"
wait "$pid" || true
eval "set -- $(sed -n 's/.*Go on with: jem_engine //p' odd.err)"
[[ $* == "train --resume --out it's here" && $4 == "it's here" ]] || fail "the printed command is: $*"
echo "all equal"
