// Collectives of GPUs: NCCL's, on the device's stream, recorded into its graphs.
#pragma once

#include <memory>

#include "engine/ranks/communicator.h"
#include "kernels/cuda/cuda_launcher.h"

namespace jem {

// Every rank calls it, with its own GPU current. InputError where this build has no NCCL. launcher and ranks must outlive it; graphs that
// hold its calls must be gone before it, and it before the stream.
std::unique_ptr<Communicator> make_nccl_communicator(CudaLauncher& launcher, Ranks& ranks);

}  // namespace jem
