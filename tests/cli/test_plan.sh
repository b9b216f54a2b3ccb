#!/usr/bin/env bash
# jem_engine plan --gpu from outside: no GPU, no driver, no data file.
set -uo pipefail
export LC_ALL=C

program=${1:-${JEM_ENGINE:?}}
failures=0
fail() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n' "$1"
    [[ ! -s ${2:-} ]] || sed 's/^/    /' "$2" | head -n 8
}
plan=(plan --recipe sada-jem --data cifar10 --data-dir nowhere --threads 1)

# planned ARGUMENTS...: stdout goes to the file out
planned() {
    local code=0
    timeout 120 "$program" "${plan[@]}" "$@" >out 2>err </dev/null || code=$?
    [[ $code == 0 ]] && return
    fail "exit code $code: plan $*" err
    return 1
}
# refused PATTERN ARGUMENTS...: exit code 2, nothing on stdout, one to three lines that contain the pattern
refused() {
    local pattern=$1 code=0
    shift
    timeout 60 "$program" "${plan[@]}" "$@" >out 2>err </dev/null || code=$?
    [[ $code == 2 ]] || fail "exit code $code in place of 2: plan $*" err
    grep -q -e "$pattern" err || fail "the error does not say \"$pattern\": plan $*" err
    (($(wc -l <err) <= 3)) || fail "a long error: plan $*" err
    [[ ! -s out ]] || fail "an error came with a result: plan $*" out
}
# json EXPRESSION: true of the result j, in Python
json() {
    tail -n 1 out | python3 -c "import json, sys; j = json.load(sys.stdin); sys.exit(0 if ($1) else 1)" || fail "not true of the result: $1" out
}

planned --json && json '"gpu" not in j and j["device"] == "cpu"' # for the CPU as ever

help=$("$program" plan --help) # not through a pipe: grep -q would end it early
if [[ $help == *'not in this build'* ]]; then
    refused 'this build has no CUDA parts (.*[a-zA-Z].*)' --gpu h100
    ((failures == 0)) || exit 1
    echo 'this build has no CUDA parts'
    exit 77
fi

planned --gpu h100 --precision bf16 --json || exit 1
for key in regions peak_bytes peak_process_bytes flops_per_iteration bytes_per_iteration launches_per_iteration \
    predicted_seconds_per_iteration convolutions; do
    json "'$key' in j"
done
json 'all(r["bytes"] >= 0 and r["name"] for r in j["regions"]) and j["peak_process_bytes"] > j["peak_bytes"] > 0'
json 'abs(j["flops_per_iteration"] - 33516e9) < 1e9'  # what the CPU counts
json 'all(c["engine"].startswith("cudnn eng") and c["shape"] and c["workspace_bytes"] >= 0 for c in j["convolutions"])'
json '{c["pass"] for c in j["convolutions"]} == {"forward", "backward_data", "backward_weights"}'
json 'len({c["shape"] for c in j["convolutions"]}) == 12'
json 'len(j["fused_candidates"]) == 12 * 10'
json 'j["fits"] and j["launches_per_iteration"] > 1000 and j["bytes_per_iteration"] > 1e10'
# between the roofline of the arithmetic alone and a second
json 'j["flops_per_iteration"] / 989.4e12 < j["predicted_seconds_per_iteration"] < 1'
bf16=$(tail -n 1 out)
planned --gpu h100 --precision f32 --json && printf '%s\n' "$bf16" >>out &&
    tail -n 2 out | python3 -c 'import json, sys; f32, bf16 = map(json.loads, sys.stdin); sys.exit(not (f32["peak_bytes"] > bf16["peak_bytes"] and f32["predicted_seconds_per_iteration"] > bf16["predicted_seconds_per_iteration"]))' ||
    fail 'bf16 needs less memory and time than f32' out

planned --gpu h100 --precision bf16 --overlap on --json && printf '%s\n' "$bf16" >>out &&
    tail -n 2 out | python3 -c 'import json, sys; on, off = map(json.loads, sys.stdin); sys.exit(not (off["peak_bytes"] < on["peak_bytes"] < 1.1 * off["peak_bytes"] and on["launches_per_iteration"] == off["launches_per_iteration"]))' ||
    fail '--overlap on needs a little more memory, for the same launches' out
refused 'overlap.*on.*off' --gpu h100 --overlap maybe
planned --gpu t4 && for words in 'Tesla T4' prediction 'linear head: cublasLt' 'fused candidate' 'on the GPU'; do
    grep -q "$words" out || fail "the page does not say \"$words\"" out
done
if [[ ! -e /proc/driver/nvidia ]]; then
    grep -q 'not planned (compiled' out || fail 'fused graphs without a driver' out
fi
planned --gpu rtx4090 --precision tf32 --json
refused 'Tesla T4 (sm_75) has no bf16.*--precision f32' --gpu t4 --precision bf16
refused 'Tesla T4 (sm_75) has no tf32.*--precision f32' --gpu t4 --precision tf32
refused 'precision f64' --gpu h100 --precision f64
refused 't4, a100, rtx4090, h100, b200, rtx5090' --gpu h2000
planned --gpu t4 --batch-size 6000 --depth 16 --width 4 && grep -q 'It does not fit.*Lower --batch-size' err || fail 'a plan that does not fit says so' err
refused '2^31' --gpu t4 --batch-size 20000

# a file: with peaks of its own, without, damaged
cat >gpu.json <<'END'
{"maxGridSize":[2147483647,65535,65535],"maxBlockSize":[1024,1024,64],"regsPerBlock":65536,"multiProcessorCount":114,"warpSize":32,
 "maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":232448,"reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,
 "maxCtasPerSM":32,"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"pciDeviceId":0,"isTccDriver":0,"supportCoopLaunch":1,
 "totalGlobalMem":85029158912,"smClockRateKHz":1755000,"memClockRateKHz":1593000,"l2CacheSize":52428800,"cudaDeviceId":0,"deviceVer":900,
 "driverVer":13000,"deviceName":"NVIDIA H100 PCIe"}
END
planned --gpu gpu.json --json && json 'j["gpu"] == "NVIDIA H100 PCIe" and "predicted_seconds_per_iteration" not in j'
planned --gpu gpu.json && grep -q 'No time is predicted' out || fail 'it says why no time is predicted' out
sed 's/^{/{"bandwidth":2e12,"flopsBF16":7.5e14,/' gpu.json >peaks.json
planned --gpu peaks.json --precision bf16 --json && json 'j["predicted_seconds_per_iteration"] > 0'
sed 's/"l2CacheSize":[0-9]*,//' gpu.json >missing.json
refused 'l2CacheSize is missing' --gpu missing.json
head -c 300 gpu.json >cut.json
refused 'no JSON object' --gpu cut.json
refused 'no JSON object' --gpu /dev/null
sed 's/"multiProcessorCount":[0-9]*/"multiProcessorCount":9999999999/' gpu.json >many.json
refused 'multiProcessorCount is no whole number from 1 to 2147483647' --gpu many.json
sed 's/"deviceName":"/&\\u001b[2J/' gpu.json >steering.json
refused 'deviceName holds control characters' --gpu steering.json
{ printf '{"a":' && head -c 1000000 /dev/zero | tr '\0' '['; } >deep.json
refused 'no JSON object' --gpu deep.json

needed=$(readelf -d "$program" 2>/dev/null || true)
[[ $needed != *'[libcuda.so'* ]] || fail 'the program needs libcuda.so: it would not start without a driver'

((failures == 0)) || { echo "$failures failures" && exit 1; }
