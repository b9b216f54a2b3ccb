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
# finalise GRAPHS GPU PRECISION [--nondeterministic]: into the file out
finalise() {
    local expected=$1
    shift
    gpu=$*
    LD_LIBRARY_PATH=$build/nodevice timeout 200 "$check" "$@" >out 2>err </dev/null || {
        fail "exit code $?: $gpu" && cat err
        return 1
    }
    [[ $(wc -l <out) == "$expected" ]] || fail "$expected graphs are expected: $gpu"
}
planned() { grep -q "^$1: cudnn eng" out || { fail "$gpu: $1 is not planned" && grep "^$1" out; }; }
refused() { grep -q "^$1: refused" out || { fail "$gpu: $1 is not refused" && grep "^$1" out; }; }

plain='160->160 32x32 k3 s1' half='320->320 32x32 k3 s2'
bias=(bias 'bias and residual')
norm=('norm and leaky in front, bias' 'norm and leaky in front, bias and residual')
sums=('bias and sums' 'bias, residual and sums')
norm_sums=('norm and leaky in front, bias and sums' 'norm and leaky in front, bias, residual and sums')
all=("${bias[@]}" "${norm[@]}" "${sums[@]}" "${norm_sums[@]}" accumulation 'leaky backward and sums')
both() { # VERB FUSION...: of both shapes
    local verb=$1 fusion
    shift
    for fusion in "$@"; do "$verb" "$fusion, $plain" && "$verb" "$fusion, $half"; done
}
for name in a100 rtx4090 h100 b200 rtx5090; do
    finalise 20 $name bf16 || continue
    both planned "${bias[@]}" "${norm[@]}" "${sums[@]}" accumulation
    planned "leaky backward and sums, $plain"
    refused "leaky backward and sums, $half" # cuDNN 9.19 offers engines that do not compile
    both refused "${norm_sums[@]}"           # not with sums in a fixed order
done
finalise 10 h100 bf16 --nondeterministic && both planned "${sums[@]}" "${norm_sums[@]}"
# without TF32 only what stands behind the forward convolution is offered, and no sums
finalise 20 h100 f32 && both planned "${bias[@]}" && both refused "${sums[@]}"
finalise 20 t4 bf16 && both refused "${all[@]}"
finalise 20 t4 f32 && both planned "${bias[@]}" && both refused "${sums[@]}"

((failures == 0)) || { echo "$failures failures" && exit 1; }
