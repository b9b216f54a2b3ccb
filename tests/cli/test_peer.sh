#!/usr/bin/env bash
# What tools/compare_pytorch.py holds the engine's recipes against is the same iteration: tools/peer_recipes.py has the engine's settings, and
# tests/golden's values and gradients.
# Usage: test_peer.sh PROGRAM, in an empty folder. Skipped where no Python has PyTorch.
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=
for candidate in "$root/build/venv/bin/python3" python3; do
    "$candidate" -c 'import safetensors.numpy, torch' 2>/dev/null && python=$candidate && break
done
[[ -n $python ]] || { echo 'no Python has PyTorch and safetensors (tools/setup --bench installs them into build/venv)' && exit 77; }
"$python" "$root/tests/cli/peer_cases.py" "$program"
