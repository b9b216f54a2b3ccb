#!/usr/bin/env bash
# jem_engine from outside: a tiny run, what the commands say of it, and that wrong usage ends with exit code 2 and one clear message.
# Called by tools/test as `bash test_commands.sh PROGRAM` in an empty folder.
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/tests/checks.sh"

# refused PATTERN ARGUMENTS...: exit code 2, nothing on stdout, an error of one to three lines that contains the pattern
refused() {
    local pattern=$1 lines
    shift
    run 2 "$@" || return
    lines=$(sed -n '/^error: /,$p' err | wc -l)
    ((lines >= 1 && lines <= ${most_lines:-3})) || fail "an error of $lines lines: jem_engine $*" err
    grep -q -e "$pattern" err || fail "the error does not say \"$pattern\": jem_engine $*" err
    ! grep -qiE 'terminate|what\(\)|assert|backtrace|std::|nlohmann::' err || fail "the error shows the inside: jem_engine $*" err
    [[ ! -s out ]] || fail "an error came with a result: jem_engine $*" out
}

expect() { # WHAT COMMAND...
    local what=$1
    shift
    "$@" || fail "$what" out
}
same() { [[ $1 == "$2" && -n $1 ]]; }
value() { grep -o "\"$1\":[^,}]*" "${2:-out}" | tail -n 1 | cut -d: -f2-; } # of a JSON key
is_png() { [[ $(head -c 8 "$1" | tail -c 7 | head -c 3) == PNG ]]; }

# --- info and help: need no data ----------------------------------------------------------------------------------------------------
run 0 --help
run 0 --version
for command in train sample evaluate plan step info; do run 0 "$command" --help; done
run 0 info && expect 'info names the CPU device' grep -q oneDNN out
run 0 info --json && expect 'info --json ends with JSON' grep -q '^{"version":' out

# --- plan: opens no data file -------------------------------------------------------------------------------------------------------
run 0 plan --recipe sada-jem --data cifar10 --data-dir nowhere --threads 1 --json &&
    expect 'WRN-28-10 has its published number of parameters' same "$(value parameters)" 36489290
# 11.9 GFLOP an image: (64 + 64 + 128) * 3 * 2 passes of training and 64 * 2 * 10 of sampling
gflop=$(value flops_per_iteration | cut -d. -f1)
expect "an iteration of WRN-28-10 has 33.5 TFLOP, not ${gflop:-?}" test "${gflop:0:5}" = 33516 -a "${#gflop}" = 14
run 0 plan --recipe softmax --data mnist --threads 1 --depth 10 --width 1 && expect 'plan shows the phases' grep -q labelled out
! grep -q '^  sample ' out || fail 'softmax samples' out
run 0 plan --recipe sada-jem --data cifar100 --depth 10 --width 1 --threads 1 --json &&
    arena=$(value peak_bytes) && expect 'the process needs more than the arena' test "$(value peak_process_bytes)" -gt "$arena"
refused '--recipe is needed' plan --data cifar10
refused '--data is needed' plan --recipe sada-jem
refused 'says\? otherwise' plan --recipe sada-jem --data cifar10 --image-size 28
refused 'batch-size is 60000' plan --recipe sada-jem --data cifar10 --batch-size 60000 --depth 10 --width 1
# an epoch's iterations, and memory: the labelled images lie there twice
few=(plan --recipe jem --data cifar10 --depth 10 --width 1 --threads 1 --json)
images() { tail -n 1 out | grep -o '"name":"images","bytes":[0-9]*' | cut -d: -f3; }
run 0 "${few[@]}" && all=$(images) && run 0 "${few[@]}" --labels-per-class 400 &&
    expect 'plan counts 4000 images of 3 KiB more' test $(($(images) - all)) -ge $((4000 * 3072)) -a $(($(images) - all)) -lt $((4000 * 3200))
refused 'labels-per-class is 6000 (of 10 classes these are 60000, and there are 50000' "${few[@]}" --labels-per-class 6000
refused 'batch-size 40 or less' "${few[@]}" --labels-per-class 4

# --- wrong usage, before anything is read -------------------------------------------------------------------------------------------
base=(train --recipe sada-jem --data fashion-mnist --out never)
refused 'subcommand' --json
refused 'no command "nonsense"' nonsense
refused 'no-such-flag' "${base[@]}" --no-such-flag 1
refused 'no recipe "jemm"' train --recipe jemm --data fashion-mnist --out never
refused '--recipe is needed' train --data fashion-mnist --out never
refused '--data is needed' train --recipe sada-jem --out never
refused '--out is needed' train --recipe sada-jem --data fashion-mnist
refused 'unknown data set' train --recipe sada-jem --data imagenet --out never
refused '--device cuda' "${base[@]}" --device cuda
refused '--precision tf32' "${base[@]}" --precision tf32
DNNL_MAX_CPU_ISA=AVX2 refused 'AVX512_BF16 or AMX' "${base[@]}" --precision bf16
refused 'all 0' "${base[@]}" --p-x-weight 0 --p-y-given-x-weight 0
for wrong in 'depth 11' 'depth -2' 'depth 4' 'width 0' 'width 33' 'in-channels 2' 'image-size 7' 'image-size 65' 'num-classes 1' \
    'epochs -1' 'iterations -1' 'iterations -2' 'batch-size 0' 'batch-size -3' 'gen-batch-size 0' 'gen-batch-size 70000' 'lr -1' 'lr nan' 'lr inf' 'lr 1e99' \
    'momentum -0.1' 'momentum 1.5' 'momentum nan' 'weight-decay -1' 'lr-decay 2' 'lr-milestones 0' 'ema 1' 'ema -1' \
    'ema nan' 'sgld-steps -1' 'sgld-steps 100001' 'sgld-step-size -1' 'sgld-step-size nan' 'sgld-noise -1' 'sgld-grad-clamp -1' \
    'buffer-size 0' 'reinit-freq 1.1' 'reinit-freq nan' 'rho -1' 'rho 1e99' 'p-x-weight -1' 'p-x-weight nan' 'p-y-given-x-weight -1' \
    'energy-l2 -1' 'input-noise -1' 'n-valid -1' 'labels-per-class 2e9' 'checkpoint-interval -1' 'log-interval 0' 'sample-interval -1' \
    'threads -1' 'threads 100000'; do
    refused "--${wrong% *}" "${base[@]}" "--${wrong% *}" "${wrong#* }"
done
for flag in depth width epochs iterations batch-size gen-batch-size lr momentum weight-decay sgld-steps sgld-step-size buffer-size rho \
    seed threads n-valid; do
    for wrong in abc '' 1x; do refused "--$flag" "${base[@]}" "--$flag=$wrong"; done
done
for wrong in 'width 1e99' 'width 1.5' 'batch-size 99999999999999999999' 'seed -1' 'seed 99999999999999999999999' 'lr-milestones 5,x'; do
    refused "--${wrong% *}" "${base[@]}" "--${wrong% *}" "${wrong#* }"
done
for wrong in 'optimizer adamw' 'sam samm' 'norm group' 'init zeros' 'augment maybe' 'device tpu' 'lr-schedule linear' 'sampling-norm none'; do
    refused "--${wrong% *}" "${base[@]}" "--${wrong% *}" "${wrong#* }"
done
refused 'lr' "${base[@]}" --lr
[[ ! -e never ]] || fail 'a refused command made its folder'

# --- the data set's files -----------------------------------------------------------------------------------------------------------
mkdir empty
refused 'missing data' "${base[@]}" --data-dir empty --quiet
refused 'missing data' "${base[@]}" --data-dir no/such/folder --quiet
rm -rf never
if ! compgen -G '/usr/share/datasets/fashion-mnist/*images*' >/dev/null; then
    ((failures == 0)) || exit 1
    echo 'the rest needs /usr/share/datasets/fashion-mnist'
    exit 77
fi
refused 'batch-size is 60000' "${base[@]}" --batch-size 60000 --n-valid 1 --quiet --depth 10 --width 1
refused 'gen-batch-size is 60000' "${base[@]}" --gen-batch-size 60000 --n-valid 1 --quiet --depth 10 --width 1
refused 'n-valid is 60000' "${base[@]}" --n-valid 60000 --quiet
rm -rf never

# --- a tiny run ---------------------------------------------------------------------------------------------------------------------
tiny=(--recipe sada-jem --data fashion-mnist --depth 10 --width 1 --batch-size 16 --gen-batch-size 8 --sgld-steps 1 --buffer-size 50
    --n-valid 200 --warmup-iterations 0 --lr 0.02 --ema 0.5 --threads 2 --quiet)
run 0 train "${tiny[@]}" --iterations 3 --out run --lr 0.5 --lr 0.02 --json || exit 1 # of two --lr the last one counts
expect 'the last of two flags counts' grep -q '"lr": 0.02' run/config.json
trained=$(value accuracy)
weights=run/checkpoints/last.safetensors
expect 'train prints the accuracy of metrics.jsonl' same "$trained" "$(value valid_accuracy run/metrics.jsonl)"
expect 'the last iteration is logged' same "$(value iteration run/metrics.jsonl)" 3
run 0 train "${tiny[@]}" --iterations 0 --out none && expect '--iterations 0 leaves a checkpoint' test -s none/checkpoints/last.safetensors
refused 'already holds a run' train "${tiny[@]}" --iterations 3 --out run
refused 'not the one' train --resume --recipe softmax --out run --quiet
refused 'damaged\|no JSON\|cannot read\|Cannot read' train --config no.json --out never
refused 'There is no run in .never' train --resume --out never # no run, and nothing says what to train

run 0 train "${tiny[@]}" --iterations 2 --energy-head linear --out linear &&
    run 0 sample --checkpoint linear/checkpoints/last.safetensors --from buffer --steps 1 --count 4 --pick best --raw linear.safetensors --quiet &&
    run 0 evaluate --checkpoint linear/checkpoints/last.safetensors --quiet
most_lines=4 refused 'missing: energy_output' evaluate --checkpoint $weights --energy-head linear --quiet

# --- evaluate -----------------------------------------------------------------------------------------------------------------------
run 0 evaluate --checkpoint $weights --split auto --json --quiet --out measured --seed 77 &&
    expect "evaluate says what training said ($trained)" same "$(value accuracy)" "$trained" && expect 'and how long it took' grep -qE '"seconds":.*"timings":\{"accuracy_s":[^,]*,.*"predictions_s":[0-9.]*[1-9]' out
! grep -q seconds measured/evaluation.json || fail 'the file would differ each time' measured/evaluation.json
for file in evaluation.json reliability_15.csv reliability_20.csv; do expect "evaluate writes $file" test -s measured/$file; done
counted=$(awk -F, 'NR > 1 { n += $3 } END { print NR - 1, n }' measured/reliability_20.csv)
expect "20 bins hold all 200 images, not $counted" same "$counted" '20 200'
expect 'ece_20 is in the result' same "$(value ece_20)" "$(grep -o '"ece_20": [^,]*' measured/evaluation.json | cut -d' ' -f2)"
run 0 evaluate --checkpoint $weights --json --quiet --metrics accuracy && expect 'accuracy gives nll and brier too' test -n "$(value nll)" -a -n "$(value brier)"
[[ -z $(value ece_15) ]] || fail '--metrics accuracy gives ece' out
run 0 evaluate --checkpoint run/checkpoints/last.state.safetensors --metrics nll --quiet --threads 1 &&
    expect 'evaluate prints a table' grep -q '^nll ' out
[[ $(grep -c accuracy out) == 0 ]] || fail '--metrics nll prints an accuracy' out
run 0 evaluate --checkpoint $weights --split auto --weights ema --json --quiet && nll=$(value nll) &&
    run 0 evaluate --checkpoint $weights --split auto --json --quiet && same "$(value nll)" "$nll" && fail 'the average is the last weights' out
run 0 evaluate --checkpoint $weights --split auto --metrics pgd,landscape --pgd-eps 0,2 --pgd-steps 2 --pgd-images 20 --landscape-images 10 --landscape-points 3 \
    --landscape-points-2d 2 --landscape-to run/checkpoints/best.safetensors --raw raw.safetensors --json --quiet --out attacked &&
    expect 'robust accuracy is named by the eps that were given' grep -q '"robust_accuracy":{"0":[0-9.]*,"2":[0-9.]*}' out &&
    expect 'a raw file has the logits' grep -aq '"logits":{' raw.safetensors
for file in robustness landscape_1d landscape_2d landscape_line; do expect "evaluate writes $file.csv" test -s attacked/$file.csv; done
expect 'nothing of an evaluation that ended is left to go on with' test ! -e attacked/unfinished.jsonl
refused '"2,x".*from 0 to 255' evaluate --checkpoint $weights --metrics pgd --pgd-eps 2,x
run 0 evaluate --checkpoint $weights --metrics all --budget 0 --json --quiet --out budget && expect 'what is beyond the budget is said' grep -q '"left_out":{.*beyond --budget 0' out
# an attack that takes minutes, stopped when it has begun
"$program" evaluate --checkpoint $weights --metrics accuracy,pgd --pgd-steps 20000 --json --quiet --out interrupted >out 2>err </dev/null &
for ((i = 0; i < 600; ++i)); do
    [[ ! -s interrupted/unfinished.jsonl ]] || break
    sleep 0.1
done
kill -TERM $!
wait $!
expect 'an evaluation that SIGTERM ends says so in its exit code' test $? -eq 143 && expect 'it keeps what it had' test -s interrupted/evaluation.json &&
    expect 'and goes on' test -s interrupted/unfinished.jsonl
refused 'no metric "fi".*accuracy, nll, brier, ece' evaluate --checkpoint $weights --metrics accuracy,fi
refused 'fid cannot be measured.*--features' evaluate --checkpoint $weights --metrics accuracy,fid
refused 'no metric ""' evaluate --checkpoint $weights --metrics accuracy,
refused '--checkpoint is needed' evaluate
refused 'no/such' evaluate --checkpoint no/such.safetensors
refused '3x32x32' evaluate --checkpoint $weights --data cifar10 --quiet
refused 'missing data' evaluate --checkpoint $weights --data mnist --data-dir empty --quiet
refused '--split valid' evaluate --checkpoint $weights --data mnist --split valid
refused 'safetensors' evaluate --checkpoint measured/evaluation.json
kept=run/evaluation/last/evaluation.json
rm -rf run/evaluation
run 0 evaluate --checkpoint $weights --json --quiet --metrics accuracy && run 0 evaluate --checkpoint $weights --quiet --metrics ece &&
    expect 'results of several calls join' same "$(grep -cE '"(accuracy|ece_20)": [0-9]' $kept)" 2
run 0 evaluate --checkpoint $weights --metrics ece --weights ema && expect 'it says so' grep -q 'are replaced' err
! grep -q '"accuracy"' $kept || fail 'results of other weights were joined' $kept
run 0 evaluate --checkpoint $weights --json --quiet --metrics accuracy
if /usr/bin/python3 -c 'import matplotlib' 2>/dev/null; then
    run 0 evaluate --checkpoint run/checkpoints/best.safetensors --metrics ece --quiet
    cp -r run reported && echo '{"iteration":99,"event":"a word about the run"}' >>reported/metrics.jsonl
    "$root/tools/report" reported >out 2>err || fail 'there is no report of a run with an event' err
    ! grep -q '<dd>99<' reported/report/index.html || fail 'an event counts as an iteration' reported/report/index.html
    "$root/tools/report" run >out 2>err || fail 'there is no report' err
    for part in 'Evaluation of last' 'Evaluation of best'; do expect "the report has $part" grep -q "$part" run/report/index.html; done
fi
touch file
refused 'file/measured' evaluate --checkpoint $weights --out file/measured

# --- too little memory --------------------------------------------------------------------------------------------------------------
if ! sanitized; then # who would take what is asked for
    within_memory 8000000 run 1 train --recipe sada-jem --data fashion-mnist --depth 10 --width 1 --batch-size 4 --gen-batch-size 2 --buffer-size 10000000 \
        --device cpu --threads 1 --quiet --out too_large &&
        expect 'too little memory is said in one line' grep -qE '^error: Out of memory \([0-9.]+ GiB .* are needed.*\)\. Lower --batch-size' err
fi

# --- bench --------------------------------------------------------------------------------------------------------------------------
small_bench=(bench --data fashion-mnist --depth 10 --width 1 --gen-batch-size 2 --batch-size 4 --sgld-steps 2 --repeat 1 --warmup 0 --threads 1 --quiet)
run 0 "${small_bench[@]}" --only sampling --profile --json && expect 'it times K steps' grep -q '"sgld_step":{"launches":2\.0' out
! grep -q 'sgd_update\|"cross_entropy\|draw_chains\|store_chains' out || fail '--only sampling trains' out
# What it times is what `train` runs and holds, by `plan`, which reads no data either: nothing more but the iteration's number and scalars.
run 0 plan --recipe sada-jem "${small_bench[@]:1:12}" --threads 1 --json
planned_launches=$(value launches_per_iteration) planned_arena=$(value peak_bytes)
run 0 "${small_bench[@]}" --profile --json && expect 'it holds the data, the buffer and an evaluation' same "$(value arena_bytes)" "$planned_arena"
launches=$(grep -o '"[a-z_]*":{"launches":[0-9]*' out | awk -F: '{ n += $3 } END { print n }')
expect "the ops of an iteration are train's: $launches launches, $planned_launches planned" test "$launches" = $((planned_launches + 2))
for op in begin_iteration read_back draw_images draw_chains start_images store_chains; do
    expect "the profile lists $op" grep -q "\"$op\":" out
done
expect 'it says who computes convolutions' grep -qE '"convolutions":\{"[a-z0-9_:]+":[1-9]' out
refused 'batch-size is 60001' "${small_bench[@]}" --batch-size 60001
refused 'n-valid is 60000' "${small_bench[@]}" --n-valid 60000
run 0 "${small_bench[@]}" --only forward --sgld-steps 0 --json --profile && expect 'it times passes forward' grep -q '"conv_forward' out
! grep -q 'backward\|sgld_step' out || fail '--only forward goes back' out
refused 'take no sampling steps' "${small_bench[@]}" --only sampling --sgld-steps 0
refused 'only' "${small_bench[@]}" --only updating
run 0 "${small_bench[@]}" --sgld-steps 1 --device reference --precision f64 --profile --json && expect 'f64 has peaks too' grep -q '"peak_flops_per_s"' out

# --- sample -------------------------------------------------------------------------------------------------------------------------
run 0 sample --checkpoint $weights --steps 2 --count 12 --sheet one.png --raw one.safetensors --quiet --threads 1 --json &&
    expect 'the counts of the classes make 12' same "$(value images)" 12
before=$(cksum <$weights)
expect 'a sheet is a PNG' is_png one.png
run 0 sample --checkpoint $weights --steps 2 --count 12 --raw two.safetensors --quiet --threads 2
expect 'sampling is the same again, and with another number of threads' cmp one.safetensors two.safetensors
run 0 sample --checkpoint $weights --steps 2 --count 12 --raw two.safetensors --quiet --seed 5
! cmp -s one.safetensors two.safetensors || fail 'the seed does not matter'
run 0 sample --checkpoint $weights --from buffer --count 50 --pick worst --raw two.safetensors --sheet two.png --quiet --json &&
    expect 'the whole buffer comes back' same "$(value images)" 50
expect 'the buffer needs no step' same "$(value steps)" 0
run 0 sample --checkpoint run/checkpoints/last.state.safetensors --from buffer --count 60 --raw all.safetensors --quiet &&
    expect 'more than the buffer holds' grep -q 'samples *50 ' out
run 0 sample --checkpoint $weights --from noise --steps 1 --count 3 --sgld-noise 0.01 --sampling-norm running --weights ema --sheet n.png --quiet
expect 'sampling leaves the checkpoint alone' same "$before" "$(cksum <$weights)"
(mkdir -p here && cd here && "$program" sample --checkpoint ../$weights --from noise --steps 0 --count 1 --quiet >/dev/null 2>&1 && is_png samples.png) ||
    fail 'without --sheet and --raw there is no samples.png'
refused '--class is 10' sample --checkpoint $weights --class 10
refused '--class is -1' sample --checkpoint $weights --class -1
refused '--class' sample --checkpoint $weights --class shoe
for wrong in 'count 0' 'count -1' 'count abc' 'count 1e99' 'steps -1' 'steps nan' 'from nowhere' 'pick some' 'weights first'; do
    refused "--${wrong% *}" sample --checkpoint $weights "--${wrong% *}" "${wrong#* }"
done
refused 'no replay buffer' sample --checkpoint none/../one.safetensors --from buffer --depth 10 --width 1 --in-channels 1 --image-size 28 --num-classes 10
refused 'file/x.png' sample --checkpoint $weights --sheet file/x.png
refused 'it is a folder' sample --checkpoint $weights --raw empty
refused '--checkpoint is needed' sample --count 3
refused 'missing data' sample --checkpoint $weights --data-dir empty --quiet
cp $weights copy.safetensors
for flag in sheet raw; do refused "--$flag would overwrite --checkpoint" sample --checkpoint copy.safetensors --$flag copy.safetensors; done
mkdir own_data && cp /usr/share/datasets/fashion-mnist/train-*.gz own_data
kept=$(cat own_data/* | cksum)
for file in own_data/*; do refused '--raw would overwrite a file of fashion-mnist' sample --checkpoint $weights --data-dir own_data --raw "$file"; done
expect 'the data set is as it was' same "$(cat own_data/* | cksum)" "$kept"
refused '--raw would overwrite --sheet' sample --checkpoint $weights --sheet both --raw ./both
expect 'the checkpoint is whole' cmp $weights copy.safetensors
mkfifo pipe
{ timeout 30 cat pipe >piped & }
run 0 sample --checkpoint $weights --steps 1 --count 4 --raw pipe --quiet --threads 1
wait $!
expect 'a FIFO is written to' test -p pipe -a -s piped
ln -s linked.png link
run 0 sample --checkpoint $weights --steps 1 --count 4 --sheet link --quiet --threads 1
expect 'a link stays' test -L link && expect 'its target is written' is_png linked.png
[[ -z $(find . -name '*.tmp') ]] || fail 'temporary files were left'

# --- damaged and foreign checkpoints ------------------------------------------------------------------------------------------------
bytes=$(wc -c <$weights)
head -c $((bytes / 2)) $weights >cut.safetensors
head -c 5 $weights >short.safetensors
: >nothing.safetensors
sed '1s/F32/F64/' $weights >type.safetensors
sed '1s/{"__metadata__/X"__metadata__/' $weights >json.safetensors
sed '1s/recipe/rezept/' $weights >setting.safetensors
sed '1s/\[10,64\]/[11,64]/' $weights >shape.safetensors
for damaged in cut short nothing type json shape setting; do
    for command in evaluate sample; do refused 'safetensors\|configuration' $command --checkpoint $damaged.safetensors --quiet; done
done
refused 'out is needed\|safetensors' step --checkpoint cut.safetensors --batch cut.safetensors --dump dump.safetensors
most_lines=17 refused 'does not fit' evaluate --checkpoint $weights --width 2 --quiet
most_lines=17 refused 'does not fit' sample --checkpoint $weights --depth 16 --from noise --quiet
refused '--depth is 11' evaluate --checkpoint $weights --depth 11
refused '--width is 0' sample --checkpoint $weights --width 0
cp $weights nan.safetensors # the last four bytes belong to the last convolution
printf '\000\000\300\177' | dd of=nan.safetensors bs=1 seek=$((bytes - 4)) conv=notrunc status=none
run 3 sample --checkpoint nan.safetensors --from noise --steps 1 --count 2 --sheet nan.png --quiet && expect 'it says so' grep -q 'error: Sampling diverged' err
[[ ! -e nan.png ]] || fail 'a sheet of diverged samples'
run 1 evaluate --checkpoint nan.safetensors --quiet && expect 'it says so' grep -q 'error: Logits are not finite' err
cp -r run torn
head -c 4000 run/checkpoints/last.state.safetensors >torn/checkpoints/last.state.safetensors
refused 'safetensors' train --resume --out torn --quiet
echo '{' >torn/config.json
refused 'config.json is damaged' train --resume --out torn --quiet

# --- a result that cannot be written, texts of libraries, two processes in a folder -------------------------------------------------
if [[ -c /dev/full ]]; then
    for command in "info" "--help" "evaluate --checkpoint $weights --json --quiet"; do
        code=0
        # shellcheck disable=SC2086  # several words
        "$program" $command >/dev/full 2>err </dev/null || code=$?
        expect "a full stdout is exit code 1, not $code: $command" same $code 1
        expect 'and it is said' grep -q 'error: The result could not be written' err
    done
fi
code=0
"$program" info >&- 2>err </dev/null || code=$?
expect "a closed stdout is exit code 1, not $code" same $code 1
code=0
(ulimit -f 40 && exec "$program" train "${tiny[@]}" --iterations 1 --out limited --quiet >out 2>err </dev/null) || code=$?
expect "a limit of files' sizes is exit code 1, not $code" same $code 1
expect 'and it is said' grep -q 'error: .*File too large' err
refused 'train does not know --foo bar (' train --foo bar
refused 'batch-size is "x" (a whole number' train --batch-size x
refused '--lr is given without a value' train --lr
refused 'A subcommand is needed'
long=$(printf 'a%.0s' {1..300})
ln -s loop loop
refused "cannot read 'run'" train --config run --out never
refused 'too long' train "${tiny[@]}" --iterations 1 --out "$long"
refused 'symbolic links' train "${tiny[@]}" --iterations 1 --out loop/run
refused 'symbolic links' train --resume --out loop
refused 'symbolic links' evaluate --checkpoint $weights --data-dir loop --quiet
mkdir odd && mkdir odd/config.json
refused 'config.json' train --resume --out odd
"$program" train "${tiny[@]}" --iterations 100000 --out owned >/dev/null 2>&1 &
owner=$!
for _ in {1..600}; do [[ ! -s owned/metrics.jsonl ]] || break && sleep 0.1; done
refused 'is in use (process [0-9]* on .* trains in it)' train --resume --out owned --quiet
refused 'is in use' train "${tiny[@]}" --iterations 1 --out owned
kill -KILL $owner && wait $owner 2>/dev/null
run 0 train --resume --out owned --iterations 1 --quiet

# --- unwritable places --------------------------------------------------------------------------------------------------------------
refused 'file/run' train "${tiny[@]}" --iterations 1 --out file/run

# --- step: a batch made of the samples' own bytes -----------------------------------------------------------------------------------
image=$((28 * 28 * 4))
entry() { printf '"%s":{"dtype":"F32","shape":[4,1,28,28],"data_offsets":[%d,%d]},' "$1" $(($2 * image)) $((($2 + 4) * image)); }
header="{$(entry x_lab 0)$(entry x_neg_start 4)$(entry x_pos 8)\"y\":{\"dtype\":\"I64\",\"shape\":[4],\"data_offsets\":[$((12 * image)),$((12 * image + 32))]}}"
from=$(($(od -An -t u8 -N 8 one.safetensors) + 8 + 1))
{
    # shellcheck disable=SC2059  # the length is two escaped bytes
    printf "\\x$(printf %02x $((${#header} % 256)))\\x$(printf %02x $((${#header} / 256)))\\0\\0\\0\\0\\0\\0"
    printf %s "$header"
    tail -c +$from one.safetensors | head -c $((12 * image))
    head -c 32 /dev/zero
} >batch.safetensors
small=(step --checkpoint "$weights" --batch batch.safetensors --depth 10 --width 1 --sgld-steps 1 --quiet)
run 0 "${small[@]}" --dump a.safetensors && run 0 "${small[@]}" --dump b.safetensors && expect 'a step is the same again' cmp a.safetensors b.safetensors
run 0 step --checkpoint run/checkpoints/last.state.safetensors --batch batch.safetensors --sgld-steps 1 --quiet --dump c.safetensors
refused '--dump would overwrite --batch' "${small[@]}" --dump batch.safetensors
refused 'file/d' "${small[@]}" --dump file/d.safetensors
refused '--dump is needed' "${small[@]}"
refused 'x_pos' step --checkpoint $weights --batch one.safetensors --dump c.safetensors --depth 10 --width 1 --in-channels 1 --image-size 28

((failures == 0)) || { echo "$failures failures" && exit 1; }
