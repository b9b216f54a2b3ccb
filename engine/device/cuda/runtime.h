// The CUDA runtime's calls with their errors as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "engine/device/out_of_memory.h"

namespace jem::cuda {

// what: "start a recording" ...
inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // not to be taken for the next call's
    if (status == cudaErrorMemoryAllocation) throw OutOfMemory(std::string("the GPU's runtime could not ") + what);
    throw std::runtime_error(std::string("Could not ") + what + " (CUDA: " + cudaGetErrorString(status) +
                             "). If the cause may be an earlier operation, run again with CUDA_LAUNCH_BLOCKING=1.");
}

}  // namespace jem::cuda
