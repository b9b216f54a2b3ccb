#!/usr/bin/env bash
# A run that an earlier version (0.1.0) wrote goes on and is evaluated. Called by tools/test as `bash test_old_run.sh PROGRAM` in an empty folder.
#
# old_run/ is what this command left, with the images below; its config.json knows neither split_seed nor input_noise_on:
#   jem_engine train --recipe sada-jem --data mnist --data-dir data --depth 10 --width 1 --batch-size 8 --gen-batch-size 4 --buffer-size 12 \
#       --sgld-steps 2 --n-valid 16 --seed 5 --iterations 3 --log-interval 1 --sample-interval 0 --threads 1 --out old_run
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

. "$here/../made_images.sh"
cp -r "$here/old_run" run && gunzip run/checkpoints/*.gz || exit 1

"$program" evaluate --checkpoint run/checkpoints/last.state.safetensors --split auto --metrics accuracy,nll --quiet --json >evaluated || exit 1
"$program" train --resume --iterations 5 --threads 1 --quiet --out run >/dev/null || exit 1

# What 0.1.0 went on to. CPUs and compilers round differently: by some 1e-7 of these values an iteration, which two iterations of so small
# a rate (4e-4) hardly enlarge. Other images held out, noise on other images, a draw or a term too many change them by per cents.
python3 - <<'END'
import json

TOLERANCE = 1e-4
wanted = {"loss": 2.325978398323059, "loss_gen": 0.014536798000335693, "f_pos": 2.3052300810813904, "f_neg": 2.319766879081726,
          "sgld_grad_norm": 0.05063288378722949, "loss_clf": 2.3114416003227234, "grad_norm": 2.103243041967738, "valid_accuracy": 0.0625}
with open("run/metrics.jsonl", encoding="utf-8") as lines:
    log = [json.loads(line) for line in lines]
assert [line["iteration"] for line in log] == [1, 2, 3, 4, 5], log
for name, want in wanted.items():
    got = log[-1][name]
    assert abs(got - want) <= TOLERANCE * max(1, abs(want)), f"{name}: got {got}, want {want}, tolerance {TOLERANCE}"
with open("evaluated", encoding="utf-8") as file:
    evaluated = json.loads(file.read().splitlines()[-1])
assert evaluated["images"] == 16 and evaluated["split"] == "valid", evaluated
want = 2.343452711342961
assert abs(evaluated["nll"] - want) <= TOLERANCE * want, f"nll: got {evaluated['nll']}, want {want}"
END
