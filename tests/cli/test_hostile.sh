#!/usr/bin/env bash
# What a checkpoint or a run's folder from a stranger can make the program do: nothing is written outside the folders that were asked for,
# nothing is run, the terminal is not steered, and no memory is taken for what the file only announces.
# Called by tools/test as `bash test_hostile.sh PROGRAM` in an empty folder.
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/tests/checks.sh"
. "$root/tests/made_images.sh"
export HOME=$PWD/home XDG_CACHE_HOME=$PWD/home/cache
mkdir home

small=(--data mnist --data-dir data --depth 10 --width 1 --batch-size 8 --gen-batch-size 8 --sgld-steps 1 --buffer-size 20
    --warmup-iterations 0 --sample-interval 0 --threads 1)
run 0 train --recipe sada-jem "${small[@]}" --iterations 2 --out own --quiet || exit 1

# changed FROM TO PYTHON: a safetensors file whose header h, configuration c and progress p (JSON) were changed
changed() {
    python3 - "$@" <<'END'
import json, sys

with open(sys.argv[1], "rb") as file:
    h, data = json.loads(file.read(int.from_bytes(file.read(8), "little"))), file.read()
meta = h["__metadata__"]
c, p = json.loads(meta["config"]), json.loads(meta["progress"])
text = {}
exec(sys.argv[3])
meta["config"], meta["progress"] = text.get("config", json.dumps(c)), text.get("progress", json.dumps(p))
header = json.dumps(h).encode()
with open(sys.argv[2], "wb") as file:
    file.write(len(header).to_bytes(8, "little") + header + data)
END
}
# everything there is, but for what scripts write themselves and the folders given
files() {
    local folder skip=()
    for folder in "$@"; do skip+=(-path "./$folder" -prune -o); done
    find . "${skip[@]}" -type f ! -name out ! -name err ! -name before -printf '%p %s %T@\n' | sort
}
nothing_else_changed() { # WHAT FOLDER...
    local what=$1
    shift
    files "$@" | cmp -s - before || fail "$what wrote elsewhere: $(files "$@" | diff before - | head -n 3)"
}

mkdir strange
evil='$(touch evil);`touch evil`|touch evil'
changed own/checkpoints/last.safetensors strange/paths.safetensors \
    "c['start_from'] = '../../evil'; c['features'] = r'$evil'; c['metrics'] = '../../evil,$evil'; c['split_seed'] = 3"
changed own/checkpoints/last.safetensors strange/recipe.safetensors "c['recipe'] = '../../$evil\x1b[2J'"
changed own/checkpoints/last.safetensors strange/data.safetensors "c['data'] = '../../evil'"
changed own/checkpoints/last.safetensors strange/data_dir.safetensors "c['data_dir'] = r'$evil'"
changed own/checkpoints/last.safetensors strange/deep.safetensors "text['config'] = '{\"seed\": ' + '[' * 10 ** 6 + ']' * 10 ** 6 + '}'"
changed own/checkpoints/last.safetensors strange/progress.safetensors "p.update(iteration=-2 ** 63, seconds='x', best_chosen_on={})"
changed own/checkpoints/last.safetensors strange/large.safetensors "c.update(depth=994, width=32, num_classes=10)"
changed own/checkpoints/last.safetensors strange/names.safetensors \
    "h['../../evil\x1b[2J'] = {'dtype': 'U8', 'shape': [0], 'data_offsets': [0, 0]}; h['/dev/null\n'] = h['../../evil\x1b[2J']"
changed own/checkpoints/last.safetensors strange/method.safetensors \
    "c['method'] = {'steps': [{'chain': '../../$evil\x1b[2J'}, {'term': 't', 'batch': 'chain', 'objectives': []}]}"
changed own/checkpoints/last.safetensors strange/steps.safetensors "c['method'] = {'steps': [{}] * 10 ** 6}"
# of terms that this program does not know: whoever does not train need not
changed own/checkpoints/last.safetensors strange/terms.safetensors \
    "c['method'] = {'steps': [{'term': 't', 'batch': 'chain', 'objectives': [{'name': '../../evil\x1b[2J'}]}]}"
files >before

evaluated=(--metrics accuracy --threads 1 --quiet --json)
run 0 evaluate --checkpoint strange/paths.safetensors "${evaluated[@]}"
nothing_else_changed 'evaluate of names in a checkpoint'
run 0 evaluate --checkpoint strange/progress.safetensors "${evaluated[@]}"
run 2 evaluate --checkpoint strange/names.safetensors "${evaluated[@]}"
grep -q 'superfluous: ../../evil?' err || fail 'the name is not told' err
! grep -q $'\x1b' err || fail 'a name of a tensor steers the terminal' err
run 0 evaluate --checkpoint strange/terms.safetensors "${evaluated[@]}"
nothing_else_changed 'evaluate of unknown terms in a checkpoint'
for file in recipe data data_dir deep method steps; do
    run 2 evaluate --checkpoint "strange/$file.safetensors" "${evaluated[@]}"
    ! grep -q $'\x1b' err || fail "strange/$file.safetensors steers the terminal" err
done
within_memory 8000000 run 2 evaluate --checkpoint strange/large.safetensors "${evaluated[@]}" ||
    fail 'a checkpoint that only announces a large network is not refused at once'
nothing_else_changed 'evaluate and sample'
run 2 sample --checkpoint strange/recipe.safetensors --from noise --count 2 --steps 1 --sheet sheet.png --threads 1 --quiet
run 0 sample --checkpoint strange/paths.safetensors --from noise --count 2 --steps 1 --sheet sheet.png --threads 1 --quiet
rm -f sheet.png
nothing_else_changed 'sample of names in a checkpoint'

# beginning with it, and resuming a stranger's folder
run 0 train --recipe sada-jem "${small[@]}" --iterations 1 --out new --quiet --start-from strange/paths.safetensors
nothing_else_changed 'train --start-from' new
for change in "c['start_from'] = '../../evil'" "c['features'] = r'$evil'" "c['metrics'] = '../../evil'" "c['recipe'] = '../evil'" \
    "c['method'] = {'steps': [{'term': '../evil', 'batch': 'real', 'objectives': [{'name': 'cross-entropy'}]}]}" \
    "c['method'] = {'steps': [{'term': 't', 'batch': 'chain', 'objectives': [{'name': '../evil\x1b[2J'}]}]}" \
    "c['metric_interval'] = 1; c['metrics'] = 'fid'; c['features'] = 'inception:../../evil'"; do
    rm -rf copy && cp -r own copy
    python3 - "$change" <<'END'
import json, sys
with open("copy/config.json") as file:
    c = json.load(file)
exec(sys.argv[1])
with open("copy/config.json", "w") as file:
    json.dump(c, file)
END
    code=0
    timeout 60 "$program" train --resume --out copy --iterations 3 --threads 1 --quiet >out 2>err </dev/null || code=$?
    ((code == 0 || code == 2)) || fail "resuming with $change: exit code $code" err
    nothing_else_changed "resuming with $change" new copy
done

((failures == 0)) || { echo "$failures failures" && exit 1; }
