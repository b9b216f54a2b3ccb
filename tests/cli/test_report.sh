#!/usr/bin/env bash
# tools/report on made runs: one page with its pictures, several runs, half-written files, a run that goes on, what it refuses.
set -uo pipefail
export LC_ALL=C PYTHONDONTWRITEBYTECODE=1

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
program=${1:-${JEM_ENGINE:-true}}
. "$root/tests/checks.sh"
if sanitized; then
    echo 'nothing of it is compiled: another build runs it'
    exit 77
fi
report=$root/tools/report
/usr/bin/python3 -c 'import matplotlib' 2>/dev/null || { echo 'SKIPPED: matplotlib is not installed' && exit 77; }
failed=0

fail() { # WHAT [FILE]
    printf 'FAILED: %s\n' "$1" >&2
    [[ -z ${2:-} ]] || head -c 2000 "$2" >&2
    failed=1
}
expect() { # WHAT COMMAND...
    local what=$1
    shift
    "$@" || fail "$what" err
}
run() { # CODE ARGUMENT...: tools/report must end with it, without a traceback
    local code=$1 status=0
    shift
    "$report" "$@" >out 2>err || status=$?
    ((status == code)) || fail "report $* ended with $status, not $code" err
    ! grep -q Traceback err || fail "report $* fell over" err
    ((status == code))
}
refused() { # PATTERN ARGUMENT...: exit code 2 and few words
    local pattern=$1
    shift
    run 2 "$@" || return
    grep -q -- "$pattern" err || fail "report $* does not say '$pattern'" err
    (($(wc -l <err) <= 3)) || fail "report $* says more than three lines" err
}
# the words of a page, without the data of its pictures
words() { sed -E 's/base64,[^"]*//g' "$1"; }

made=$root/tests/made_run.py
"$made" s/sada-jem-1 --seed 1 && "$made" s/sada-jem-2 --seed 2 && "$made" s/sada-jem-3 --seed 3 &&
    "$made" s/softmax --seed 1 --config recipe=softmax --config 'note=<script>alert(1)</script>' || exit 1

# --- one run ------------------------------------------------------------------------------------------------------------------------
page=s/sada-jem-1/report/index.html
if run 0 s/sada-jem-1; then
    expect 'the page is named on stdout' test "$(<out)" = "$page"
    expect 'whole files get no word' test ! -s err
    for name in accuracy energy loss gradients frechet_distance samples reliability_last ood_histogram_last ood_roc_last robustness_last landscape_1d_last \
        landscape_line_last landscape_2d_last; do
        for kind in png pdf csv; do
            expect "there is $name.$kind" test -s s/sada-jem-1/report/$name.$kind
            expect "the page leads to $name.$kind" grep -q "href=\"$name.$kind\"" $page
        done
    done
    expect 'a picture has its data' test "$(head -n 1 s/sada-jem-1/report/energy.csv)" = iteration,epoch,energy_real,energy_sampled
    first=$(sed -n 1p s/sada-jem-1/metrics.jsonl | grep -o '"f_pos": [^,]*' | cut -d' ' -f2)
    expect 'energy is -LSE' awk -F, -v f="$first" 'NR == 2 { exit ($3 + f > 1e-6 || $3 + f < -1e-6) }' s/sada-jem-1/report/energy.csv
    ! words $page | grep -oE '(src|href|url\()="?(http|//|file|\.\.)[^"]*' || fail 'the page asks for something from outside'
    expect 'each sheet of the page is in it' test "$(grep -c '<img class="sheet" src="data:image/png;base64' $page)" -ge 1
    ! grep '<img' $page | grep -qv 'src="data:' || fail 'an image is not in the page'
    for part in 'Evaluation of last' 'FID (authors&#x27; protocol)' '1000 images) (authors&#x27; protocol)' 'Landscape energy' '<td>0.633</td>' '81.0 %' 'seed 1'; do expect "the page has $part" grep -qF "$part" $page; done
    [[ ! -e s/sada-jem-1/report/index.html.tmp ]] || fail 'a temporary file is left'
fi
"$made" own --seed 1 --config method=steps && run 0 own &&
    expect 'the title says that the steps are not the recipe'"'"'s' grep -qF 'A method of one&#x27;s own with the values of sada-jem on cifar10' own/report/index.html
echo mine >s/sada-jem-1/report/mine.png
mv s/sada-jem-1/evaluation kept
run 0 s/sada-jem-1 && expect 'a picture that is no longer true goes' test ! -e s/sada-jem-1/report/reliability_last.png &&
    expect 'a file of somebody else stays' test -s s/sada-jem-1/report/mine.png
mv kept s/sada-jem-1/evaluation

# --- half-written files -------------------------------------------------------------------------------------------------------------
cp -r s/sada-jem-2 cut
half() { head -c "$(($(wc -c <"$1") / 2))" "$1" >half && mv half "$1"; }
half cut/metrics.jsonl && half cut/evaluation/last/robustness.csv && half cut/config.json
half cut/samples/iteration_0004800.png
echo 'lower,upper' >cut/evaluation/last/reliability_15.csv
mkdir cut/evaluation/best && echo '{"accuracy": 0.5, "nl' >cut/evaluation/best/evaluation.json
printf '\n{"iteration": 400000, "loss": NaN}\n{"iteration": 1e999}\n[1]\n7\n' >>cut/metrics.jsonl
if run 0 cut; then
    for part in 'line.* of metrics.jsonl' 'config.json could not be read' 'iteration_0004800.png: no whole PNG' 'reliability_15.csv of last has no column' \
        'evaluation/best/evaluation.json could not be read' '1 row of robustness.csv' 'not finite'; do
        expect "a word about '$part' in the page" grep -q "$part" cut/report/index.html
        expect "and on stderr" grep -q "$part" err
    done
    expect 'what is whole is drawn' test -s cut/report/landscape_2d_last.png -a -s cut/report/robustness_last.png -a -s cut/report/loss.png
fi

# --- several runs -------------------------------------------------------------------------------------------------------------------
if run 0 s/sada-jem-1 s/sada-jem-2 s/sada-jem-3 s/softmax s/sada-jem-2 --out all; then
    # the mean and the deviation of the three seeds, once more, from the evaluations themselves
    cat s/sada-jem-?/evaluation/last/evaluation.json | grep -oE '"accuracy": 0[^,]*' | awk '{ s += $2; q += $2 * $2; n++ }
        END { m = s / n; printf "%.2f \\(\\\\pm\\|\302\261\\|\\$ \\\\pm \\$\\) %.2f", 100 * m, 100 * sqrt((q - n * m * m) / (n - 1)) }' | sed 's/\\(.*\\)/\\(.*\\)/' >figure
    read -r mean _ deviation < <(sed 's/\\(.*\\)/x/' figure)
    expect "the page has $mean +- $deviation" grep -q ">$mean .* $deviation<" all/index.html
    expect 'and so has the LaTeX table' grep -q "^accuracy .* & $mean \$\\\\pm\$ $deviation & " all/table.tex
    expect 'booktabs' test "$(grep -cE '^\\(toprule|bottomrule)$' all/table.tex)" = 2
    expect 'the group is named by what is common' grep -q 'sada-jem (n = 3)' all/index.html
    expect 'only settings that differ' test "$(cut -d, -f1 all/settings.csv | tr '\n' ' ')" = 'setting recipe seed note '
    expect 'a row for each run' test "$(cut -d, -f1 all/figures.csv | tr '\n' ' ')" = 'run sada-jem-1 sada-jem-2 sada-jem-3 softmax '
    for name in accuracy frechet_distance energy loss gradients reliability robustness landscape_1d ood_roc samples; do
        expect "there is $name" test -s all/$name.png -a -s all/$name.pdf -a -s all/$name.csv
    done
    ! grep -q '<script' all/index.html || fail 'a setting becomes part of the page'
fi
# with few labels they are chosen anew by each split seed: two seeds with one and with another choice are two groups
for s in 1 2; do "$made" "t/few-$s" --seed "$s" --bare --config labels_per_class=4 --config split_seed=$((s + 4)) || exit 1; done
if run 0 t/few-1 t/few-2; then ! grep -q 'few (n = 2)' t/report/index.html || fail 'runs of other labelled images are one group'; fi
rm -rf t
# the seed of the held-out split follows the seed where nobody sets it; a repeat of a seed is no further draw
"$made" t/a-1 --seed 1 --bare --config n_valid=100 --config split_seed=1 && "$made" t/a-2 --seed 2 --bare --config n_valid=100 --config split_seed=2 || exit 1
cp -r t/a-2 t/a-2-again && mkdir t/empty
if run 0 t/a-1 t/a-2 t/a-2-again t/empty; then
    expect 'the comparison lies beside the runs' test "$(<out)" = "$PWD/t/report/index.html"
    expect 'two seeds, two splits' grep -q 'a (n = 2)' t/report/index.html
    expect 'the repeat stands by itself' grep -q 'a-2-again has the settings and the seed of a-2' t/report/index.html
    expect 'the empty folder is left out with a word' grep -q 'left out: t/empty holds no run' err
fi

# --- a run that goes on -------------------------------------------------------------------------------------------------------------
mkdir going && set -m # with job control, or the shell lets background jobs ignore an interrupt
"$report" going --watch >watched 2>said &
watcher=$!
set +m
wait_for() { # COMMAND...: within three minutes, on a busy machine
    local i
    for ((i = 0; i < 900; i++)); do
        "$@" 2>/dev/null && return 0
        sleep 0.2
    done
    return 1
}
expect 'it waits for a first line' wait_for grep -q 'waiting: going holds no run' said
head -n 10 s/softmax/metrics.jsonl >going/metrics.jsonl
expect 'then there is a page' wait_for grep -q '<dd>250</dd>' going/report/index.html
expect 'which renews itself' grep -q 'http-equiv="refresh"' going/report/index.html
head -n 11 s/softmax/metrics.jsonl | tail -n 1 >>going/metrics.jsonl
expect 'a new line renews it' wait_for grep -q '<dd>275</dd>' going/report/index.html
: >said
kill -INT $watcher
wait $watcher
status=$?
expect "an interrupt is exit code 130, not $status" test $status = 130
expect 'without a word' test ! -s said
! grep -q 'http-equiv="refresh"' going/report/index.html || fail 'the page goes on to load itself'

# --- TensorBoard --------------------------------------------------------------------------------------------------------------------
if ! /usr/bin/python3 -c 'import torch.utils.tensorboard' 2>/dev/null && ! /usr/bin/python3 -c 'import tensorboardX' 2>/dev/null; then
    refused 'Install torch and tensorboard' going --tensorboard events
fi
mkdir -p fake/torch/utils/tensorboard # a writer that says what it is told
touch fake/torch/__init__.py fake/torch/utils/__init__.py
cat >fake/torch/utils/tensorboard/__init__.py <<'END'
class SummaryWriter:
    def __init__(self, folder):
        print("writer", folder)
    def add_scalar(self, tag, value, step):
        print("scalar", tag, value, step)
    def add_image(self, tag, pixels, step, dataformats):
        print("image", tag, pixels.shape, step, dataformats)
    def add_text(self, tag, text, step):
        print("text", tag)
    def close(self):
        print("closed")
END
export PYTHONPATH=$PWD/fake
sed -i 's/"split": "test"/"split": "valid"/' s/softmax/evaluation/last/evaluation.json
if run 0 s/sada-jem-2 s/softmax --tensorboard events --out all; then
    for part in '^writer events/softmax' '^scalar train/loss_clf [0-9.]* 25$' '^scalar held out/test_accuracy [0-9.]* 4800$' \
        '^scalar evaluation of last/ood/svhn/auroc_px 0.633.* 4800$' '^image samples (64, 64, [34]) 4800 HWC$' '^text settings'; do
        expect "TensorBoard gets $part" grep -q "$part" out
    done
    expect 'figures of other images are told apart' grep -q 'evaluations differ: sada-jem-2: data cifar10, split test.*softmax: data cifar10, split valid' all/index.html
    expect 'both writers are closed' test "$(grep -c '^closed' out)" = 2
fi
unset PYTHONPATH

# --- what it refuses ----------------------------------------------------------------------------------------------------------------
refused 'is no folder' nowhere
refused 'holds no run' t/empty
mkdir early && echo '{"iteration": 2' >early/metrics.jsonl
refused 'holds no log line yet (1 unreadable)' early
refused 'out is needed' going s/softmax
touch file
run 1 going --out file/x
exit $failed
