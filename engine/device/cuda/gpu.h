// What is known of a GPU before anything runs on it: cuDNN's own description, and the figures a prediction needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace jem {

enum class CudaPrecision {
    f32,   // without TF32
    tf32,  // f32 tensors, factors of convolutions and products rounded to 10 bits
    bf16,  // activations and compute weights bf16; parameters, gradients, statistics, images, logits f32
};
const char* precision_name(CudaPrecision precision);    // "f32" ...
CudaPrecision cuda_precision(const std::string& name);  // InputError for others

struct GpuDescription {
    std::string name;   // "h100", or the path of the file it was read from
    std::string title;  // "NVIDIA H100 80GB HBM3"
    std::string json;   // for cuDNN (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION)
    int sm = 0;         // 75, 80, 86, 89, 90, 100, 120
    int multiprocessors = 0;
    size_t memory_bytes = 0;
    // Peaks of the published specification, for predictions: bytes/s and (dense) FLOP/s. 0: unknown, nothing is predicted.
    double bandwidth = 0, flops_f32 = 0, flops_tf32 = 0, flops_bf16 = 0;

    bool supports(CudaPrecision precision) const { return precision == CudaPrecision::f32 || sm >= 80; }
    double peak_flops(CudaPrecision precision) const {
        return precision == CudaPrecision::f32 ? flops_f32 : precision == CudaPrecision::tf32 ? flops_tf32 : flops_bf16;
    }
};

// The names of the six GPUs that need no file.
std::vector<std::string> gpu_names();
// One of them, or a JSON file with the keys of cuDNN's device properties and, for a prediction, "bandwidth" (bytes/s), "flopsF32",
// "flopsTF32", "flopsBF16" (FLOP/s, dense). InputError otherwise, naming the choices or the missing key.
GpuDescription describe_gpu(const std::string& name_or_file);

}  // namespace jem
