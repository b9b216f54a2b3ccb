// In place of cuDNN and cuBLASLt: the reference's loops, each launched as a kernel of one thread on the launcher's stream, so that
// order, capture, bounds and races are checked for convolutions as well.
#pragma once

#include "engine/device/cuda/cuda_device.h"

namespace jem {

// What the convolutions take over from the ops around them: the norm and LeakyReLU in front; the sums for the norm behind, and on the
// way back LeakyReLU and the sums behind it.
enum class Fusion { none, activation, sums, both };

MakeCudaPlans loop_plans(CudaPrecision precision, Fusion fusion = Fusion::none);

}  // namespace jem
