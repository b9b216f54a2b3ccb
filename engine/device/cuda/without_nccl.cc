// In place of nccl_communicator.cc where CMake found no NCCL.
#include "engine/device/cuda/nccl_communicator.h"

#include "engine/device/cuda/cuda_device.h"

namespace jem {

std::string missing_nccl() {
    return "NCCL was not found when this was built. Install libnccl-dev (of NVIDIA's packages, for the CUDA at hand) and build again";
}

std::string nccl_version() { return ""; }

std::unique_ptr<Communicator> make_nccl_communicator(CudaLauncher&, Ranks& ranks) {
    throw InputError(std::to_string(ranks.size()) + " GPUs cannot work together: " + missing_nccl() + "; or start one process.");
}

}  // namespace jem
