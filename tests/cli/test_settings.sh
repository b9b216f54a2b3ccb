#!/usr/bin/env bash
# Settings from outside: which of recipe, configuration and flags wins, what a value means, and what a run keeps for later.
# Called by tools/test as `bash test_settings.sh PROGRAM` in an empty folder.
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/tests/checks.sh"
refused() { # PATTERN ARGUMENTS...
    local pattern=$1
    shift
    run 2 "$@" || return
    [[ $(grep -c '^error: ' err) == 1 ]] || fail "not one error: jem_engine $*" err
    grep -q -e "$pattern" err || fail "the error does not say \"$pattern\": jem_engine $*" err
}
says() { grep -q -e "$1" err || fail "nothing says \"$1\"" err; }
silent() { ! grep -q -e "$1" err || fail "\"$1\" is said" err; }
value() { sed -n "s/^  \"$2\": \(.*[^,]\),\{0,1\}$/\1/p" "$1/config.json"; } # FOLDER KEY
has() {                                                                    # FOLDER KEY VALUE
    [[ $(value "$1" "$2") == "$3" ]] || fail "$2 in $1 is $(value "$1" "$2"), not $3"
}

# --- the page of settings -----------------------------------------------------------------------------------------------------------
run 0 info --settings
cmp -s out "$root/docs/settings.md" || fail 'docs/settings.md is not what jem_engine info --settings writes'
run 0 train --help
grep -A1 -e '^ *--reinit-freq' out | tr -s ' \n' ' ' | grep -q '0 to 1; default: 0.05' || fail '--help shows no range and default' out
run 0 --help

# --- a small data set ---------------------------------------------------------------------------------------------------------------
. "$root/tests/made_images.sh"
mkdir cifar100
for file in train test; do head -c $((32 * 3074)) /dev/zero >cifar100/$file.bin; done
small=(--depth 10 --width 1 --batch-size 8 --gen-batch-size 8 --buffer-size 20 --threads 1 --quiet)
mnist=(--data mnist --data-dir data "${small[@]}")
begin() { run 0 train --recipe sada-jem "${mnist[@]}" --iterations 0 --out "$@"; } # FOLDER FLAGS...
wrong() { refused "$1" train --recipe sada-jem "${mnist[@]}" --iterations 0 --out never "${@:2}"; }

# --- an empty value is nothing, and a number is what it looks like -------------------------------------------------------------------
for flag in lr sgld-steps rho n-valid iterations seed split-seed threads data data-dir lr-milestones precision n_steps augment sam-local; do
    wrong "--$flag" "--$flag" ''
    wrong "--$flag" "--$flag="
done
wrong '--augment is "yes"' --augment yes
for flag in lr threads seed sgld-steps; do for text in 0x10 1,5 10x nan; do wrong "--$flag" "--$flag" $text; done; done
wrong '--sgld-steps is "1e3"' --sgld-steps 1e3
for empty in 'count' 'steps' 'class' 'sheet'; do refused "--$empty" sample --checkpoint none.safetensors "--$empty" ''; done
refused '--count' sample --checkpoint none.safetensors --count 0x10
refused '--repeat' bench --repeat ''
[[ ! -e never ]] || fail 'a refused command made its folder'

# --- recipe < --config < flags ------------------------------------------------------------------------------------------------------
echo '{"recipe": "softmax", "data": "mnist", "lr": 0.3, "momentum": 0.5}' >softmax.json
run 0 train --config softmax.json --data-dir data "${small[@]}" --iterations 0 --momentum 0.6 --out softmax
for pair in 'recipe "softmax"' 'p_x_weight 0.0' 'sam "none"' 'sgld_steps 0' 'lr 0.3' 'momentum 0.6'; do has softmax "${pair% *}" "${pair#* }"; done
refused '--recipe sada-jem beside --config' train --config softmax.json --recipe sada-jem --data-dir data "${small[@]}" --out never
run 0 train --config softmax.json --recipe softmax --data-dir data "${small[@]}" --iterations 0 --out both
echo '{"learning_rate": 1}' >unknown.json
refused '"learning_rate" in unknown.json' train --config unknown.json --out never
echo '{"lr": "1"}' >type.json
refused '"lr" in type.json' train --config type.json --out never
refused 'No such file' train --config missing.json --out never

# --- what a run keeps -----------------------------------------------------------------------------------------------------------------
begin run --n-valid 8 --seed 3
has run split_seed 3
has run input_noise_on '"generative"'
[[ $(value run data_dir) == "\"$PWD/data\"" ]] || fail "data_dir is $(value run data_dir), not absolute"
(mkdir -p elsewhere && cd elsewhere && timeout 60 "$program" train --resume --out ../run --threads 1 --quiet >/dev/null 2>../err) ||
    fail 'a run does not go on from another folder' err
refused '--lr is -1' train --recipe sada-jem "${mnist[@]}" --lr -1 --out run
refused '--num-classes' train --recipe sada-jem "${mnist[@]}" --num-classes 5 --out run
refused 'depth is 27' train --recipe sada-jem "${mnist[@]}" --depth 27 --out run
refused 'already holds a run' train --recipe sada-jem "${mnist[@]}" --out run
refused '--num-classes' plan --recipe sada-jem --data mnist --num-classes 5

# --- resuming: the images held out stay, and no configuration is ignored ----------------------------------------------------------------
run 0 train --resume --out run --seed 4 --threads 1 --quiet
has run split_seed 3
has run seed 4
refused '--split-seed is 4' train --resume --out run --split-seed 4
refused '--n-valid is 9' train --resume --out run --n-valid 9
run 0 train --resume --out run --config run/config.json --threads 1 --quiet
begin few --labels-per-class 4 --init uniform --seed 3 && has few labels_per_class 4 && has few split_seed 3
refused '--labels-per-class is 5 (the run was begun with 4; it has seen the labels of other images)' train --resume --out few --labels-per-class 5
refused '--labels-per-class is 0' train --resume --out few --labels-per-class 0
refused '--split-seed is 4' train --resume --out few --split-seed 4
run 0 train --resume --out few --seed 4 --threads 1 --quiet && has few split_seed 3
wrong '--init informative' --labels-per-class 4
wrong '--class-conditional loss' --labels-per-class 4 --init gaussian --class-conditional loss
wrong 'recipe dat' --recipe dat --labels-per-class 4
wrong '(the training set has 6 images of class 4 (4)). Give 6 or less' --labels-per-class 7 --init uniform
wrong 'there are 40 labelled images by --labels-per-class 4' --labels-per-class 4 --init uniform --batch-size 41
echo '{"lr": 0.3}' >lr.json
refused 'beside --resume: its lr is 0.3' train --resume --out run --config lr.json
sed '/"split_seed"/d; /"input_noise_on"/d' run/config.json >old.json && cp -r run old && cp old.json old/config.json
run 0 train --resume --out old --threads 1 --seed 9 --quiet # a run of before these settings were there
has old split_seed 4
has old input_noise_on '"both"'

nll() { run 0 evaluate --checkpoint "$1/checkpoints/last.safetensors" --split valid --metrics nll --threads 1 --quiet --json && grep -o '"nll":[^,]*' out; }
begin split --n-valid 8 --seed 3 && first=$(nll split)
begin other --n-valid 8 --seed 3 --split-seed 5
[[ $(nll other) != "$first" ]] || fail 'another --split-seed holds out the same images'
run 0 train --resume --out split --seed 4 --threads 1 --quiet
[[ $(nll split) == "$first" ]] || fail 'after --resume --seed other images are held out'

# --- which of two changes the images of p(x) get -----------------------------------------------------------------------------------------
for how in off flip crop on; do begin "augment_$how" --gen-augment "$how" && has "augment_$how" gen_augment "\"$how\""; done
begin augment --gen-augment && has augment gen_augment '"on"'
wrong '--gen-augment is "both" (known: off flip crop on)' --gen-augment both
sed -i 's/"gen_augment": "on"/"gen_augment": true/' augment/config.json # as a run of before there were four
run 0 train --resume --out augment --threads 1 --quiet && has augment gen_augment '"on"'

# --- the rate of CIFAR-100 ----------------------------------------------------------------------------------------------------------
cifar=(train --recipe sada-jem --data cifar100 --data-dir cifar100 "${small[@]}" --init uniform --iterations 0)
run 0 "${cifar[@]}" --out c100 && has c100 lr 0.01
run 0 "${cifar[@]}" --lr 0.2 --out c100given && has c100given lr 0.2
has run lr 0.1

# --- the authors' names -------------------------------------------------------------------------------------------------------------
begin theirs --n_steps 2 --sgld_lr 0.5 --sgld_std 0.01 --reinit_freq 0.1 --buffer_size 30 --warmup_iters -1 --n_epochs 3 --weight_decay 0.001 \
    --decay_epochs 60 90 --decay_rate 0.3 0.3 --n_valid 8 --sigma 0.03 --init gm --sgld-step-size 0.6
for pair in 'sgld_steps 2' 'sgld_step_size 0.6' 'sgld_noise 0.01' 'reinit_freq 0.1' 'buffer_size 30' 'warmup_iterations 0' 'epochs 3' \
    'weight_decay 0.001' 'lr_decay 0.3' 'n_valid 8' 'input_noise 0.03' 'init "informative"'; do has theirs "${pair% *}" "${pair#* }"; done
tr -d ' \n' <theirs/config.json | grep -q '"lr_milestones":\[60,90\]' || fail 'two epochs, not two milestones' theirs/config.json
begin order --sgld-step-size 0.6 --sgld_lr 0.5 && has order sgld_step_size 0.5 # of two names the last counts
begin commas --decay_epochs 60,90 && tr -d ' \n' <commas/config.json | grep -q '"lr_milestones":\[60,90\]' || fail 'commas do not part milestones'
begin rho --rho 0.5 && says '--rho 0.5: .*ASAM'
begin rho2 --rho 0.5 --sam sam && silent ASAM
begin rho3 --rho 0.4 && silent ASAM
begin px --px 0.5 --pyx 2 --l2_coeff 0.1 && says '--px 0.5: ' && says '--pyx 2: ' && says '--l2_coeff 0.1: '
begin px1 --px 1 --pyx 1 --l2_coeff 0 && silent 'authors'
begin labels --labels_per_class 2 --init u && says '--labels_per_class 2: ' && has labels labels_per_class 2
begin labels0 --labels_per_class -1 && silent '--labels_per_class' && has labels0 labels_per_class 0
begin own --p-x-weight 0.5 && silent 'authors'
wrong '--gen-batch-size' --batch_size 64
wrong '--decay_rate' --decay_rate 0.3 0.2
wrong '--iterations' --iterations -1
wrong '--ent_weight' --ent_weight 0.3
wrong '--act-init is of --norm act' --act-init data
wrong '--norm batch is of a Wide-ResNet' --network igebm --depth 14 --norm batch
wrong '--buffer-order fifo has no places' --buffer-order fifo --class-conditional chain
# what a recipe cannot heed
wrong '--outer-step-size' --recipe jem++ --sgld_lr 0.1
wrong 'inner steps' --outer-step-size 0.1
wrong '--recipe jeat' --attack-eps 4
wrong 'recipe eb-jdat' --recipe jeat --attack-weight 1
wrong 'cross-entropy' --recipe dat --energy-l2 0.1
wrong 'energy-head' --recipe jeat --energy-head linear

# --- a method of one's own -------------------------------------------------------------------------------------------------------------
# what info writes says the same as the recipe alone
for recipe in sada-jem eb-jdat; do
    run 0 info --method $recipe && cp out $recipe.json
    grep -q '"weight": "p_x_weight"' $recipe.json || fail "info --method $recipe has no weights by flags" $recipe.json
    begin "by_$recipe" --recipe $recipe --iterations 2 --sgld-steps 1
    run 0 train --config $recipe.json "${mnist[@]}" --sgld-steps 1 --iterations 2 --out "by_file_$recipe"
    for file in metrics.jsonl:lines checkpoints/last.safetensors:tensors; do
        python3 - "by_$recipe/${file%:*}" "by_file_$recipe/${file%:*}" "${file#*:}" <<'END' || fail "$recipe from a file is not the recipe: ${file%:*}"
import json, sys
def of(path):
    with open(path, "rb") as f:
        if sys.argv[3] == "lines":
            return [{k: v for k, v in json.loads(line).items() if k not in ("time_s", "images_per_s")} for line in f]
        header = int.from_bytes(f.read(8), "little")
        f.seek(8 + header)
        return f.read()
sys.exit(of(sys.argv[1]) != of(sys.argv[2]))
END
    done
done
run 0 info --method dat --json && python3 -c 'import json; assert json.load(open("out"))["method"]["nesterov"]' || fail 'info --method --json is no JSON' out
refused 'no recipe "jen"' info --method jen
! grep -q '"method"' by_sada-jem/config.json || fail 'a recipe has a method of its own'

# the run keeps it, and whatever reads the run's files goes by it
for example in jem-adversarial generative; do
    file=$root/docs/examples/$example.json
    own=("${mnist[@]}" --sgld-steps 2 --warmup-iterations 0)
    run 0 train --config "$file" "${own[@]}" --iterations 2 --out $example
    python3 -c 'import json, sys
kept, given = (json.load(open(f))["method"]["steps"] for f in sys.argv[1:])
for step, wanted in zip(kept, given, strict=True):
    assert all(step[k] == v or k == "objectives" for k, v in wanted.items())' $example/config.json "$file" || fail "$example/config.json has another method"
    cp -r $example twice
    run 0 train --resume --out twice --iterations 4 --threads 1 --quiet
    run 0 train --config "$file" "${own[@]}" --iterations 4 --out whole
    cmp -s <(tail -c 200000 twice/checkpoints/last.safetensors) <(tail -c 200000 whole/checkpoints/last.safetensors) ||
        fail "$example does not go on as if it had not stopped"
    run 0 train --resume --out twice --config "$file" --data-dir data --threads 1 --quiet || fail 'its own configuration does not repeat it'
    rm -rf twice whole
    best=$example/checkpoints/last.safetensors
    run 0 evaluate --checkpoint $best --metrics accuracy --threads 1 --quiet --json
    run 0 sample --checkpoint $best --from buffer --count 2 --steps 1 --sheet sheet.png --threads 1 --quiet
    run 0 plan --config "$file" --data mnist "${small[@]}" --json && grep -q '"name":"sample".*"method":{"steps":' out || fail "plan knows no phase of $example" out
    run 0 plan --config $example/config.json --threads 1 --quiet
    run 0 bench --config "$file" --data mnist "${small[@]}" --sgld-steps 1 --repeat 1 --warmup 0
    run 0 bench --config "$file" --data mnist "${small[@]}" --sgld-steps 1 --repeat 1 --warmup 0 --only sampling
    run 0 watch $example --once
done

examples=$root/docs/examples
run 0 plan --config "$examples/jem-adversarial.json" --data mnist "${small[@]}" --attack-weight 0.3 --attack-eps 4 # as its weights say
refused '--attack-ce-weight has no effect' plan --config "$examples/jem-adversarial.json" --data mnist --attack-ce-weight 0.3
refused '--class-conditional has no effect' plan --config "$examples/jem-adversarial.json" --data mnist --class-conditional chain
refused '--p-x-weight has no effect' plan --config "$examples/generative.json" --data mnist --p-x-weight 1
refused 'the method trains on none' plan --config "$examples/generative.json" --data mnist --attack-eps 4
refused 'its method is another one' train --resume --out generative --config sada-jem.json
refused 'its method is another one' train --resume --out by_sada-jem --config sada-jem.json --data mnist
wrong_method() { # PATTERN METHOD
    printf '{"data": "mnist", "method": %s}' "$2" >method.json
    refused "$1" train --config method.json --data-dir data --out never
    refused "$1" plan --config method.json
    [[ ! -e never ]] || fail 'a refused method made a folder'
}
wrong_method 'In method.json: "method" has no "steps"' '{}'
wrong_method 'has no term' '{"steps": []}'
wrong_method 'step 2 of "method" is neither' '{"steps": [{"chain": "a"}, {"chains": "b"}]}'
wrong_method 'known: energy-real' '{"steps": [{"term": "a", "batch": "real", "objectives": [{"name": "mine"}]}]}'
wrong_method 'no chain before it' '{"steps": [{"term": "a", "batch": "chain", "objectives": [{"name": "energy-sampled"}]}]}'
wrong_method 'at most 64' "{\"steps\": [$(yes '{},' | head -n 100000 | tr -d '\n'){}]}"
wrong_method 'is no JSON' "{\"steps\": $(yes '[' | head -n 1000 | tr -d '\n')}"

((failures == 0)) || { echo "$failures failures" && exit 1; }
