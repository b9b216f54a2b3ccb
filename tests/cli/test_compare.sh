#!/usr/bin/env bash
# tools/compare_pytorch.py --train runs the program from its files to its checkpoint and measures the process, --measurements what `evaluate`
# does, --recipes an iteration by other recipes; tools/bench_table shows all three. test_peer.sh is of what PyTorch does.
# PyTorch's part is played by a script that prints what tools/peer_pytorch.py prints.
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../tools" && pwd)
. "$tools/../tests/checks.sh"
if sanitized; then
    echo 'sanitizers take memory of their own, and long to fill a buffer'
    exit 77
fi

cat >peer <<'SCRIPT'
#!/bin/sh
echo "$*" >>peers
[ "$1" = -c ] && echo '"none"' && exit
echo '{"seconds": [1000.0], "peak_rss_bytes": 104857600}'
SCRIPT
chmod +x peer
failures=0
expect() { # WHAT COMMAND...
    local what=$1
    shift
    "$@" || { echo "FAILED: $what" && failures=$((failures + 1)); }
}

python3 "$tools/compare_pytorch.py" --engine "$program" --python ./peer --networks 10-1,14-1 --precisions f32 --steps 1 --threads 2 --rounds 1 \
    --compiled-rounds 0 --iterations 1 --images 200 --no-iteration --recipes jem,jem++,dat,igebm --train --measurements --attacked 4 --drawn 0 --history history.jsonl >out 2>err || { cat err && exit 1; }
expect 'the peer is asked to train, with a checkpoint' grep -q -e '--mode train --out .*peer.pt' peers
# Data and buffer are 264 MiB: less would be another process. 1000 s is what the peer claims; an iteration here takes seconds.
for mode in 'scores --images 200' 'pxgrad --images 200' 'pgd --images 4 --eps 0.001'; do
    expect "the peer is asked for $mode" grep -q -e "--mode $mode" peers
done
for recipe in jem jem++ dat igebm; do
    expect "the peer is asked for an iteration of $recipe" grep -q -e "--steps 1 .*--recipe $recipe\$" peers
done
expect 'igebm alone has a network of depth 14, and no other' test "$(grep -e '--depth 14 --width 1' peers)" = "$(grep -e '--recipe igebm$' peers)"
expect 'which its progress names' grep -q '^IGEBM-14-1 f32 iteration by igebm, round 1: engine' err
expect 'the row holds one iteration and the peak of the process' python3 -c '
import json
(row,) = json.load(open("history.jsonl"))["train"]
(seconds,) = row["seconds"]["engine"]
assert 0.005 < seconds < 500 and row["ratio"] > 2, row
assert row["mib"]["eager"] == 100 and row["mib"]["engine"] > 264, row
assert row["goals"] == [1, 1], row
'
expect 'each recipe was timed, with its goals' python3 -c '
import json
rows = json.load(open("history.jsonl"))["recipes"]
assert [(row["recipe"], row["steps"], row["work"].split(",")[0]) for row in rows] == [(name, 1, name) for name in ("jem", "jem++", "dat", "igebm")], rows
assert all(0.005 < row["seconds"]["engine"][0] < 500 and row["mib"]["engine"] > 264 and row["goals"] == [1.5, 0.5] for row in rows), rows
'
expect 'scores, gradients and attacks were measured' python3 -c '
import json
line = json.load(open("history.jsonl"))
ours = [row["seconds"]["engine"][0] for row in line["measurements"]]
assert len(ours) == 3 and all(0.001 < seconds < 500 for seconds in ours), ours
assert all(row["ratio"] > 2 and row["mib"]["eager"] == 100 for row in line["measurements"]), line
(costs,) = line["costs"]
assert 0.1 < costs["scores"] < 100 and 0.01 < costs["pxgrad"] < 100, costs
'
"$tools/bench_table" history.jsonl >table || failures=$((failures + 1))
expect 'the table of recipes is there' grep -q '^| other recipes ' table
expect 'it holds their rows, of which one says its inner steps' grep -qxF "$(grep '^| jem++, M = 1, N = 5 | WRN-10-1 | f32' out)" table
expect 'and one another network' grep -q '^| igebm, K = 1 | IGEBM-14-1 | f32 |' table
# shellcheck disable=SC2016  # Markdown's
expect 'the table of train is there' grep -q '^| `train` of ' table
expect 'it holds the row that was printed' grep -qxF "$(grep '^| WRN-10-1' out)" table
expect 'and what was measured' grep -qxF "$(grep '^| PGD' out)" table
expect 'and the costs' grep -qF 'as long as a sampling step' table
if python3 "$tools/compare_pytorch.py" --engine "$program" --python ./peer --recipes softmax >out 2>err; then failures=$((failures + 1)); fi
expect 'a recipe without a peer is refused' grep -q 'softmax has no peer' err
# Where no network is named; what plays PyTorch plays the engine, too.
python3 "$tools/compare_pytorch.py" --engine ./peer --python ./peer --precisions f32 --rounds 1 --compiled-rounds 0 --no-iteration \
    --recipes jem,igebm >out 2>err || { cat err && failures=$((failures + 1)); }
expect 'jem has its network' grep -q '^| jem, K = 10 | WRN-10-2 | f32 |' out
expect 'igebm has its own' grep -q '^| igebm, K = 10 | IGEBM-14-2 | f32 |' out
refused() { # NETWORKS FLAGS...
    ! python3 "$tools/compare_pytorch.py" --engine "$program" --python ./peer --networks "$@" >out 2>err
}
expect 'igebm needs a network of its own' refused 10-1 --recipes igebm
expect 'and is told which' grep -q '10-1 has none for igebm' err
expect 'jem needs a Wide-ResNet' refused 14-1 --no-iteration --recipes igebm,jem
expect 'and says so' grep -q '14-1 has none for jem' err
expect 'SADA-JEM needs one, too' refused 14-1 --recipes igebm
expect 'and says so' grep -q '14-1 has no Wide-ResNet' err
exit $((failures > 0))
