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
# Index arithmetic, descriptors, barriers, against plain loops and in a model.
timeout 300 "$build/jem_probe_check" >out 2>&1 </dev/null || { fail "jem_probe_check: exit code $?" && grep -v '^ok' out | head -n 20; }
grep -q '^ok' out || fail 'jem_probe_check checked nothing'
# Without a GPU the question cannot be asked, and says so.
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    for program in "jem_probe env" "jem_probe_cudnn dgrad"; do
        read -ra words <<<"$program"
        [[ -x $build/${words[0]} ]] || continue # not built for such a GPU
        if "$build/${words[0]}" "${words[1]}" >out 2>&1 </dev/null; then fail "$program needs no GPU"; fi
        grep -q '^FAIL' out || { fail "$program does not say why" && cat out; }
    done
fi
# The machine code of the probe and of the engine, where something can show it.
cuobjdump=$(command -v cuobjdump || compgen -G "$root/build/venv/lib/python3*/site-packages/triton/backends/nvidia/bin/cuobjdump" || true)
if [[ -n $cuobjdump ]]; then
    for code in "$build/jem_probe" "$(find "$build" -path '*jem_hopper.dir/launch.cu.o' -print -quit)"; do
        [[ -f $code ]] || continue
        "$root/tests/probe/audit" "$code" "${cuobjdump%%$'\n'*}" >out 2>&1 || { fail "the machine code of $code" && cat out; }
    done
else
    echo 'no cuobjdump: the machine code was not looked at'
fi
((failures == 0))
