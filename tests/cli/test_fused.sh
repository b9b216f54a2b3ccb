#!/usr/bin/env bash
# cuDNN finalises the fused graphs for GPUs that are not here: with a libcuda.so.1 that knows no device, one process a GPU.
set -uo pipefail
export LC_ALL=C

build=$(dirname "${1:-${JEM_ENGINE:?}}")
check=$build/fused_graph_check
if [[ ! -x $check ]]; then
    echo 'this build has no CUDA parts'
    exit 77
fi
failures=0
fail() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n' "$1"
}
# finalise GPU PRECISION: into the file out
finalise() {
    gpu="$1 $2"
    LD_LIBRARY_PATH=$build/nodevice timeout 200 "$check" "$1" "$2" >out 2>err </dev/null || {
        fail "exit code $?: $gpu" && cat err
        return 1
    }
    [[ $(wc -l <out) == 10 ]] || fail "10 graphs are expected: $gpu"
}
planned() { grep -q "^$1: cudnn eng" out || { fail "$gpu: $1 is not planned" && grep "^$1" out; }; }
refused() { grep -q "^$1: refused" out || { fail "$gpu: $1 is not refused" && grep "^$1" out; }; }

plain='160->160 32x32 k3 s1' half='320->320 32x32 k3 s2'
used=(bias 'bias and residual' accumulation)
further=('bias and sums' 'norm and leaky in front, bias' 'norm and leaky in front, bias and sums' 'leaky backward and sums')
for name in h100 a100 b200; do
    finalise $name bf16 || continue
    for fusion in "${used[@]}"; do planned "$fusion, $plain" && planned "$fusion, $half"; done
    for fusion in "${further[@]}"; do planned "$fusion, $plain"; done
    # without TF32 only what stands behind the forward convolution is offered
    finalise $name f32 || continue
    for fusion in bias 'bias and residual'; do planned "$fusion, $plain" && planned "$fusion, $half"; done
done
finalise t4 bf16 && for fusion in "${used[@]}" "${further[@]}"; do refused "$fusion, $plain"; done
finalise t4 f32 && for fusion in bias 'bias and residual'; do planned "$fusion, $plain" && planned "$fusion, $half"; done

((failures == 0)) || { echo "$failures failures" && exit 1; }
