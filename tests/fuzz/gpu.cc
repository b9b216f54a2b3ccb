// Descriptions of GPUs that `plan --gpu FILE` reads.
#include "engine/device/cuda/gpu.h"

#include "tests/fuzz/target.h"

JEM_FUZZ_TARGET(bytes) {
    using namespace jem;
    const std::filesystem::path file = fuzz::file_of(bytes);
    GpuDescription gpu;
    if (!fuzz::reads([&] { gpu = describe_gpu(file.string()); })) return;
    fuzz::require(gpu.sm >= 50 && gpu.sm <= 999 && gpu.multiprocessors > 0 && gpu.memory_bytes > 0 && !gpu.json.empty());
    for (const double peak : {gpu.bandwidth, gpu.flops_f32, gpu.flops_tf32, gpu.flops_bf16}) fuzz::require(peak >= 0);
}
