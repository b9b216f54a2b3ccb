#!/usr/bin/env bash
# tools/convert: checkpoints of the official codes to the engine's files and back, what it refuses, and that the program reads them.
# Usage: test_convert.sh PROGRAM, in an empty folder. Skipped where no Python has PyTorch.
set -uo pipefail
export LC_ALL=C

program=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
fail() {
    printf 'FAILED: %s\n' "$1"
    [[ ! -s ${2:-} ]] || tail -n 12 "$2"
    exit 1
}

# Without PyTorch there is one clear line; another Python than build/venv's has it or not, so one is made that has nothing.
mkdir -p copy/tools && cp "$root/tools/convert" copy/tools/
code=0
python3 -I -S copy/tools/convert a.pt b.safetensors >out 2>err || code=$?
[[ $code == 2 && ! -s out ]] || fail "without PyTorch the exit code is $code" err
[[ $(wc -l <err) == 1 ]] && grep -q 'lacks torch or safetensors.*tools/setup --bench.*build/venv' err || fail 'what to do without PyTorch is not said' err
python3 -I -S copy/tools/convert --help >out 2>err && grep -q -e '--to' out || fail '--help needs PyTorch' err

python=
for candidate in "$root/build/venv/bin/python3" python3; do
    "$candidate" -c 'import safetensors.torch, torch' 2>/dev/null && python=$candidate && break
done
[[ -n $python ]] || { echo 'no Python has PyTorch and safetensors (tools/setup --bench installs them into build/venv)' && exit 77; }

# By any Python, the script finds the one of build/venv.
if [[ -x $root/build/venv/bin/python3 ]]; then
    python3 "$root/tools/convert" nowhere.pt b.safetensors >out 2>err
    grep -q 'Cannot read nowhere.pt' err || fail 'build/venv is not found' err
fi
mkdir cases && cd cases || exit 1
"$python" -W ignore "$root/tests/cli/convert_cases.py" "$program" >out 2>err || fail 'convert_cases.py' err
cat out
