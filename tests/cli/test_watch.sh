#!/usr/bin/env bash
# jem_engine watch: a run that goes on, ends, is killed, is resumed (its log is replaced), goes silent; half a line, a long log, an old run, no run; with
# and without a terminal. Called by tools/test as `bash test_watch.sh PROGRAM` in an empty folder.
set -uo pipefail
export LC_ALL=C TERM=xterm
unset NO_COLOR

program=${1:-${JEM_ENGINE:?}}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../checks.sh"
. "$here/../made_images.sh"
pids=()
trap 'kill -KILL "${pids[@]}" 2>/dev/null' EXIT

options=(--recipe sada-jem --data mnist --data-dir data --depth 10 --width 1 --batch-size 8 --gen-batch-size 4 --buffer-size 20 --sgld-steps 1
    --lr 1e-6 --log-interval 1 --sample-interval 0 --threads 1 --quiet)
start() { # FOLDER FLAGS...; sets pid
    "$program" train --out "$1" "${options[@]}" "${@:2}" >"$1.out" 2>"$1.err" </dev/null &
    pid=$!
    pids+=("$pid")
}
watch() { # NAME ARGUMENTS...; in the background, sets watcher
    "$program" watch "${@:2}" >"$1.watched" 2>"$1.said" </dev/null &
    watcher=$!
    pids+=("$watcher")
}
ended() { # WATCHER CODE WHAT FILE
    local code=0 poll
    for ((poll = 0; poll < 600; ++poll)); do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.05
    done
    ((poll < 600)) || { fail "$3: it goes on" "$4" && kill -KILL "$1"; }
    wait "$1" || code=$?
    [[ $code == "$2" ]] || fail "$3: exit code $code in place of $2" "$4"
}
until_has() { # FILE PATTERN
    local poll
    for ((poll = 0; poll < 1200; ++poll)); do
        ! grep -qe "$2" "$1" 2>/dev/null || return 0
        sleep 0.02
    done
    fail "$1 does not say \"$2\"" "$1"
    return 1
}
has() { grep -qe "$2" "$1" || fail "$1 does not say \"$2\"" "$1"; }
lacks() { ! grep -qe "$2" "$1" || fail "$1 says \"$2\"" "$1"; }

# --- no run -------------------------------------------------------------------------------------------------------------------------
mkdir empty
for folder in empty nowhere data; do
    run 2 watch "$folder" && has err 'There is no run in'
done
run 2 watch && has err 'A folder is needed'
run 2 watch empty --interval 0
cp -r empty damaged && echo '{' >damaged/config.json && run 2 watch damaged

# --- a run that goes on: an epoch is 8 iterations ----------------------------------------------------------------------------------
start "it's on" --epochs 100000
until_has "it's on/metrics.jsonl" '"epoch":2'
run 0 watch --once "it's on"
for says in "it's on: sada-jem, WRN-10-1, mnist, f32" "^running (process $pid on " '^iteration [0-9]*/800000  epoch [0-9]*  .* images/s  ETA ' \
    '^loss [0-9].*  gen .*  clf .*  batch accuracy' '^f_pos .*f_neg .*gap .*gradient .*at x' '^epoch [0-9]*: test accuracy' '^last checkpoint 0:0. ago'; do
    has out "$says"
done
lacks out $'\033'
watch on "it's on" --interval 0.1
on=$watcher
until_has on.watched '^epoch [0-9]*0, iteration [0-9]*: test accuracy'
epoch=$(sed -n 's/^epoch \([0-9]*\), .*/\1/p' on.watched | head -n 1)
[[ $(grep -c "^epoch $epoch, " on.watched) == 1 ]] || fail 'an epoch is not one line' on.watched
lacks on.watched $'\033'
[[ ! -s on.said ]] || fail 'a watcher that nobody interrupts has something to say' on.said
# the folder's owner is not disturbed, and a second watcher neither
run 2 train "${options[@]}" --resume --out "it's on" && has err 'is in use'
run 0 watch --once "it's on" && has out '^running'

# --- interrupted: the run goes on ---------------------------------------------------------------------------------------------------
set -m # or a process in the background ignores SIGINT
watch interrupted "it's on" --interval 1000
set +m
until_has interrupted.watched '^running'
kill -INT "$watcher"
ended "$watcher" 130 'Ctrl-C' interrupted.said
kill -0 "$pid" || fail 'a watcher ended the run'

# --- killed ------------------------------------------------------------------------------------------------------------------------
kill -KILL "$pid"
wait "$pid" 2>/dev/null
ended "$on" 0 'a killed run' on.watched
has on.watched '^Stopped after iteration'
eval "set -- $(sed -n 's/^Stopped .*Go on with: jem_engine //p' on.watched)"
[[ $* == "train --resume --out it's on" && ${4:-} == "it's on" ]] || fail "the printed command is: $*"
run 0 watch "it's on" && has out '^stopped: no process' && lacks out ETA

# --- finished -----------------------------------------------------------------------------------------------------------------------
start short --epochs 3
until_has short/config.json recipe
watch short short --interval 0.1
wait "$pid" || fail 'a run failed' short.err
ended "$watcher" 0 'a finished run' short.watched
has short.watched '^Finished: all 24 iterations are done'
run 0 watch short && has out '^finished' && has out '^iteration 24/24' && lacks out 'resume'

# --- a log that another process writes; the lock is held as train holds it -------------------------------------------------------------
cp -r short made && rm -r made/checkpoints
line() { printf '{"iteration":%d,"epoch":%d,"time_s":%d.0,"images_per_s":8.0,"loss":%d.5%s}\n' "$1" $((($1 - 1) / 8)) "$1" "$1" "${2:-}"; }
for ((i = 1; i <= 11; ++i)); do line "$i" "$( ((i % 8)) || echo ',"test_accuracy":0.5')"; done >made/metrics.jsonl
flock --no-fork made/.lock sleep 1000 &
holder=$!
pids+=("$holder")
until ! flock -n made/.lock true; do sleep 0.02; done
watch made made --interval 0.1
until_has made.watched '^iteration 11/24'
# half a line, then the rest
line 16 ',"test_accuracy":0.25' >whole
head -c 30 whole >>made/metrics.jsonl
sleep 0.4
lacks made.watched 'iteration 16'
tail -c +31 whole >>made/metrics.jsonl
until_has made.watched '^epoch 1, iteration 16: test accuracy 25.00 %'
# rolled back: a shorter file takes its place, then an event, and the epoch again
head -n 9 made/metrics.jsonl >made/next && mv made/next made/metrics.jsonl
echo '{"iteration":9,"event":"rollback","from":17,"reason":"not finite","attempt":1}' >>made/metrics.jsonl
until_has made.watched '^iteration 17: rolled back to 9 (not finite), attempt 1'
line 16 ',"test_accuracy":0.75' >>made/metrics.jsonl
until_has made.watched '^epoch 1, iteration 16: test accuracy 75.00 %'
[[ $(grep -c '^epoch 0' made.watched) == 1 ]] || fail 'a log that is read anew repeats an epoch' made.watched
# not there for a moment
mv made/metrics.jsonl away
sleep 0.4
mv away made/metrics.jsonl
line 17 >>made/metrics.jsonl
# no line for long
lacks made.watched silent
touch -d '1 hour ago' made/metrics.jsonl
until_has made.watched '^running.*, silent since 1:00:0. (lines used to take 0:0'
[[ $(grep -c 'rolled back' made.watched) == 1 ]] || fail 'an event was told twice' made.watched
# all lines are there, and the last checkpoint is not written yet
for ((i = 18; i <= 24; ++i)); do line "$i"; done >>made/metrics.jsonl
sleep 0.4
kill -0 "$watcher" || fail 'it did not wait for the process to end' made.watched
run 0 watch --once made && has out 'all iterations are done'

# --- on a terminal ------------------------------------------------------------------------------------------------------------------
if command -v script >/dev/null; then
    terminal() { # NAME SETTINGS...: what a watcher writes in a second
        timeout 20 script -qefc "env ${*:2} timeout 1 '$program' watch made --interval 0.1" /dev/null >"$1" 2>&1 </dev/null || true
    }
    terminal drawn TERM=xterm
    has drawn $'\033\\[[0-9]A' && has drawn $'running.*\033\\[K'
    for plain in NO_COLOR=1 TERM=dumb; do
        terminal plain "$plain"
        has plain '^running' && lacks plain $'\033'
        [[ $(grep -c '^running' plain) == 1 ]] || fail "$plain: lines without news" plain
    done
else
    echo 'no script(1): the terminal was left out'
fi
kill "$holder"
ended "$watcher" 0 'a run whose lock is free' made.watched
has made.watched '^Finished'

# --- a long log, of which only the end is read ----------------------------------------------------------------------------------------
cp -r short long
line 8 ',"test_accuracy":0.5' >line8
yes "$(cat line8)" | head -n 300000 >long/metrics.jsonl
line 9 >>long/metrics.jsonl
within_memory 4000000 run 0 watch --once long || fail 'a long log is read whole'
has out '^iteration 9/24'

# --- a run of 0.1.0: it had no lock ------------------------------------------------------------------------------------------------------
cp -r "$here/old_run" old
run 0 watch old && has out '^epoch 0: validation accuracy 0.00 %'
has out '^finished'

((failures == 0)) || exit 1
echo 'all as it should be'
