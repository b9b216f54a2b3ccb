#!/usr/bin/env bash
# What can be known without a GPU of the convolutions that tests/probe asks a Hopper GPU about.
set -uo pipefail
export LC_ALL=C

build=$(dirname "${1:-${JEM_ENGINE:?}}")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [[ ! -x $build/jem_probe_check ]]; then
    echo 'this build has no CUDA parts'
    exit 77
fi
# shellcheck source=tests/checks.sh
source "$root/tests/checks.sh"
# Index arithmetic, descriptors, barriers; then the kernels' own source on the host, against plain loops.
for check in jem_probe_check jem_probe_emulation; do
    timeout 300 "$build/$check" >out 2>&1 </dev/null || { fail "$check: exit code $?" && grep -v '^ok' out | head -n 20; }
    grep -q '^ok' out || fail "$check checked nothing"
done
# Without a GPU the question cannot be asked, and says so.
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    for program in "jem_probe env" "jem_probe_cudnn dgrad"; do
        read -ra words <<<"$program"
        if "$build/${words[0]}" "${words[1]}" >out 2>&1 </dev/null; then fail "$program needs no GPU"; fi
        grep -q '^FAIL' out || { fail "$program does not say why" && cat out; }
    done
fi
# The machine code, where something can show it.
cuobjdump=$(command -v cuobjdump || compgen -G "$root/build/venv/lib/python3*/site-packages/triton/backends/nvidia/bin/cuobjdump" || true)
if [[ -n $cuobjdump ]]; then
    "$root/tests/probe/audit" "$build/jem_probe" "${cuobjdump%%$'\n'*}" >out 2>&1 || { fail 'the machine code' && cat out; }
else
    echo 'no cuobjdump: the machine code was not looked at'
fi
((failures == 0))
