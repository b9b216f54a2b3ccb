#!/usr/bin/env bash
# Training with several ranks under mpirun: one rank's result to rounding, all ranks the same, resuming bit for bit, a rank that is killed,
# interrupts, and wrong usage. Usage: test_ranks.sh PROGRAM, in an empty folder.
set -uo pipefail
export LC_ALL=C

program=$1
skip() {
    echo "$1"
    exit 77
}
[[ -d /usr/share/datasets/fashion-mnist ]] || skip 'no Fashion-MNIST in /usr/share/datasets (tools/setup installs it)'
[[ $(mpirun --version 2>/dev/null || true) == *'Open MPI'* ]] || skip 'no mpirun of Open MPI (tools/setup installs it)'
[[ $("$program" info --json) == *'"MPI":'* ]] || skip 'the program was built without MPI'
# Open MPI keeps memory until the process ends
export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0
export OMP_WAIT_POLICY=passive
fail() {
    printf 'FAILED: %s\n' "$1"
    [[ ! -s ${2:-} ]] || tail -n 12 "$2"
    exit 1
}

ranks() { # N ARGUMENTS...
    local n=$1
    shift
    timeout 240 mpirun --allow-run-as-root --oversubscribe -n "$n" "$program" "$@" </dev/null
}
train() { # N FOLDER FLAGS...; N = 0: without mpirun
    local n=$1 folder=$2
    shift 2
    if ((n == 0)); then
        "$program" train --out "$folder" "${small[@]}" "$@" >"$folder.out" 2>"$folder.err" </dev/null
    else
        ranks "$n" train --out "$folder" "${small[@]}" "$@" >"$folder.out" 2>"$folder.err"
    fi || fail "$n ranks: exit code $? of train --out $folder $*" "$folder.err"
}
small=(--recipe sada-jem --data fashion-mnist --depth 10 --width 1 --batch-size 16 --gen-batch-size 8 --sgld-steps 1 --buffer-size 50
    --n-valid 50 --iterations 4 --log-interval 1 --warmup-iterations 0 --lr 0.02 --sgld-noise 0.01 --energy-l2 0.01 --threads 1 --quiet)

# near A B LIMIT: largest difference of any tensor over its root mean square
cat >near.py <<'PYTHON'
import array, json, sys
def load(path):
    with open(path, "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        data = f.read()
    header.pop("__metadata__")
    header.pop("divergence_watch", None)  # accuracies among them, where one image is a large step
    code = {"F64": "d", "F32": "f", "I64": "q", "I32": "i"}
    return {k: array.array(code[v["dtype"]], data[v["data_offsets"][0]:v["data_offsets"][1]]) for k, v in header.items()}
a, b, limit = load(sys.argv[1]), load(sys.argv[2]), float(sys.argv[3])
assert a.keys() == b.keys()
worst, where = 0, ""
for name in a:
    rms = (sum(x * x for x in a[name]) / max(1, len(a[name]))) ** 0.5
    error = max((abs(x - y) for x, y in zip(a[name], b[name])), default=0) / (rms or 1)
    if not error <= worst:
        worst, where = error, name
print("worst difference: %.3g of the rms, of %s (limit %g)" % (worst, where, limit))
sys.exit(0 if worst <= limit else 1)
PYTHON
near() { python3 near.py "$1/checkpoints/last.state.safetensors" "$2/checkpoints/last.state.safetensors" "$3" || fail "$2 differs from $1"; }
same() { # FOLDER FOLDER: every tensor bit for bit
    python3 near.py "$1/checkpoints/last.state.safetensors" "$2/checkpoints/last.state.safetensors" 0 || fail "$2 is not $1 bit for bit"
}
lines() { if [[ -e $1/metrics.jsonl ]]; then wc -l <"$1/metrics.jsonl"; else echo 0; fi; }

# --- several ranks against one ------------------------------------------------------------------------------------------------------
# f32: the same sums in another order, by 2e-5 of a tensor's rms, until a LeakyReLU or SGLD's clamp falls on the other side, which may happen
# in the first iteration: only the losses say something.
train 0 one --norm-statistics job
train 2 two --norm-statistics job
train 4 four --norm-statistics job
train 0 plain --norm none --sam none --iterations 2
train 2 plain2 --norm none --sam none --iterations 2
python3 - <<'PYTHON' || fail 'the losses of 2 or 4 ranks are not those of one'
import json
def read(folder):
    return [json.loads(line) for line in open(folder + "/metrics.jsonl")]
for one, several in (("one", "two"), ("one", "four"), ("plain", "plain2")):
    for want, got in zip(read(one), read(several), strict=True):
        for key in ("loss", "loss_gen", "f_pos", "f_neg", "loss_clf", "grad_norm", "sgld_grad_norm"):
            assert abs(got[key] - want[key]) <= 0.03 * abs(want[key]), (several, key, got[key], want[key])
PYTHON
# f64: two iterations, to rounding
reference=(--device reference --precision f64 --batch-size 4 --gen-batch-size 2 --buffer-size 10 --n-valid 2 --iterations 2 --norm-statistics job)
train 0 exact "${reference[@]}"
train 2 exact2 "${reference[@]}"
near exact exact2 1e-9
train 0 bare "${reference[@]}" --norm none --sam none --iterations 1
train 2 bare2 "${reference[@]}" --norm none --sam none --iterations 1
near bare bare2 1e-9
# with its own statistics a rank computes something else
train 2 own "${reference[@]}" --norm-statistics rank
python3 near.py exact/checkpoints/last.state.safetensors own/checkpoints/last.state.safetensors 1e-3 >own.near && fail '--norm-statistics rank changes nothing' own.near
[[ $(lines two) == 4 ]] || fail "two ranks wrote $(lines two) log lines, 4 expected"
[[ $(wc -l <two.out) == 1 ]] || fail 'more than one rank printed a result' two.out

# --- a rank that is killed ----------------------------------------------------------------------------------------------------------
long=(--iterations 40 --checkpoint-interval 3)
train 2 whole "${long[@]}"
start() { # FOLDER FLAGS...; sets pid to mpirun's
    set -m # or a process in the background ignores SIGINT
    mpirun --allow-run-as-root --oversubscribe -n 2 "$program" train --out "$1" "${small[@]}" "${long[@]}" "${@:2}" >"$1.out" 2>"$1.err" </dev/null &
    pid=$!
    set +m
}
wait_for_lines() { # FOLDER N
    local poll
    for ((poll = 0; poll < 3000 && $(lines "$1") < $2; ++poll)); do
        kill -0 "$pid" 2>/dev/null || fail "$1 ended before its line $2" "$1.err"
        sleep 0.01
    done
}
start killed
wait_for_lines killed 8
victim=$(pgrep -P "$pid" -f 'train --out killed' | tail -n 1)
kill -KILL "$victim" || fail 'no rank to kill'
began=$SECONDS status=0
wait "$pid" || status=$?
((status != 0)) || fail 'a job whose rank was killed ended well'
((SECONDS - began < 60)) || fail "a job whose rank was killed ended after $((SECONDS - began)) s"
# In whose words depends on who is first to notice: Open MPI 4's mpirun and 5's prterun name the signal (prterun without its texts their
# name alone, or the exit code where the other rank was quicker), the other rank says that one has died, or may have.
says_so='signal 9|proc-aborted|non-zero status|(has|may have) died'
grep -qE "$says_so" killed.err || fail 'nothing says that a rank was killed' killed.err
! grep -qE "$says_so" whole.err || fail 'a job that nobody touched says that a rank was killed' whole.err
for file in killed/checkpoints/*.safetensors; do
    python3 near.py "$file" "$file" 0 >/dev/null || fail "$file is damaged after a kill"
done
train 2 killed "${long[@]}" --resume
same whole killed

# The same where mpirun does not end the others.
mpirun --allow-run-as-root --oversubscribe --enable-recovery -n 2 "$program" train --out left "${small[@]}" "${long[@]}" --iterations 4000 \
    >left.out 2>left.err </dev/null &
pid=$!
wait_for_lines left 2
victim=$(pgrep -P "$pid" -f 'train --out left' | tail -n 1)
kill -KILL "$victim" || fail 'no rank to kill'
began=$SECONDS
wait "$pid" # recovering, it answers 0 whatever happened
((SECONDS - began < 60)) || fail "the rank that was left alone ended after $((SECONDS - began)) s" left.err
grep -qE 'error: .*(has|may have) died' left.err || fail 'the rank that was left alone says nothing' left.err

# --- interrupts ---------------------------------------------------------------------------------------------------------------------
# mpirun passes USR1 on; of an INT it makes a TERM, and kills a second later: on a busy machine the last checkpoint is then an older one.
# Iterations of a few milliseconds: many, or they are done before the signal.
long=(--iterations 200 --checkpoint-interval 20)
train 2 whole200 "${long[@]}"
for signal in USR1 INT; do
    start "by_$signal"
    wait_for_lines "by_$signal" 4
    kill "-$signal" "$pid"
    status=0
    wait "$pid" || status=$?
    ((status != 0)) || fail "SIG$signal ended with exit code 0"
    [[ $signal == INT || $status == 138 ]] || fail "SIG$signal ended with exit code $status, 138 expected" "by_$signal.err"
    done_so_far=$(lines "by_$signal")
    ((done_so_far < 200)) || fail "SIG$signal came too late"
    [[ $signal == INT ]] || python3 - "by_$signal" "$done_so_far" <<'PYTHON' || fail "SIG$signal left no checkpoint of the last iteration" "by_$signal.err"
import json, sys
with open(sys.argv[1] + "/checkpoints/last.state.safetensors", "rb") as f:
    header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
sys.exit(json.loads(header["__metadata__"]["progress"])["iteration"] != int(sys.argv[2]))
PYTHON
    train 2 "by_$signal" "${long[@]}" --resume
    same whole200 "by_$signal"
done

# --- going back ---------------------------------------------------------------------------------------------------------------------
# Called diverged again and again, whenever the energy gap leaves 2.5 deviations of its last five iterations: all ranks go back together.
rollbacks() { grep -c '"event":"rollback"' "$1/metrics.jsonl"; }
jumpy=(--iterations 60 --lr 0.2 --gap-window 5 --gap-deviations 2.5 --max-rollbacks 1000 --checkpoint-interval 7)
train 2 back "${jumpy[@]}"
(($(rollbacks back) >= 2)) || fail "two ranks went back $(rollbacks back) times, twice at least expected"
[[ $(grep -c '"loss":' back/metrics.jsonl) == 60 ]] || fail 'the log does not have a line of each iteration' back/metrics.jsonl
long=("${jumpy[@]}")
start back_killed
wait_for_lines back_killed 20
kill -KILL "$(pgrep -P "$pid" -f 'train --out back_killed' | tail -n 1)" || fail 'no rank to kill'
wait "$pid"
train 2 back_killed "${jumpy[@]}" --resume
same back back_killed
[[ $(rollbacks back) == $(rollbacks back_killed) ]] || fail 'a killed and resumed job went back another number of times'
status=0
ranks 2 train --out lost "${small[@]}" --iterations 40 --lr 1000 --max-rollbacks 2 >lost.out 2>lost.err || status=$?
((status == 3)) || fail "a job beyond saving ended with exit code $status, 3 expected" lost.err
[[ $(rollbacks lost) == 2 ]] || fail "two ranks went back $(rollbacks lost) times, twice expected" lost.err

# --- wrong usage: one line from one rank, exit code 2 -------------------------------------------------------------------------------
refused() { # PATTERN N ARGUMENTS...
    local pattern=$1 status=0
    shift
    ranks "$@" >out 2>err || status=$?
    ((status == 2)) || fail "exit code $status in place of 2: $*" err
    [[ $(grep -c '^error' err) == 1 ]] || fail "not one error: $*" err
    grep -q "^error.*$pattern" err || fail "the error does not say \"$pattern\": $*" err
}
refused 'batch-size is 15' 2 train --out never "${small[@]}" --batch-size 15
refused 'gen-batch-size is 6' 4 train --out never "${small[@]}" --gen-batch-size 6
refused 'already holds a run' 2 train --out two "${small[@]}"
refused 'evaluate works in one process' 2 evaluate --checkpoint two/checkpoints/last.safetensors
refused 'depth is 11' 2 train --out never "${small[@]}" --depth 11
head -c 4000 two/checkpoints/last.state.safetensors >cut && cp -r two torn && cp cut torn/checkpoints/last.state.safetensors
refused 'safetensors' 2 train --resume --out torn --quiet
status=0
RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29555 "$program" train --out never "${small[@]}" >/dev/null 2>err0 &
RANK=1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29555 "$program" train --out never "${small[@]}" >/dev/null 2>err1 || status=$?
wait $!
((status == 2)) && grep -q 'mpirun -n 2' err0 && [[ ! -s err1 ]] || fail "CPU ranks of torchrun: exit code $status" err0

# --- bench --------------------------------------------------------------------------------------------------------------------------
ranks 2 bench --depth 10 --width 1 --data mnist --batch-size 8 --gen-batch-size 4 --sgld-steps 1 --repeat 1 --warmup 0 --threads 1 --quiet --json >out 2>err ||
    fail "bench with two ranks: exit code $?" err
grep -q '"ranks":2' out || fail 'bench does not say its ranks' out
echo 'all equal'
