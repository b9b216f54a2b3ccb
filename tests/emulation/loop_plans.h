// In place of cuDNN and cuBLASLt: the reference's loops, each launched as a kernel of one thread on the launcher's stream, so that
// order, capture, bounds and races are checked for convolutions as well.
#pragma once

#include "engine/device/cuda/cuda_device.h"

namespace jem {

enum class Fusion { none, activation };  // what the convolutions take over: nothing, or the norm and LeakyReLU in front of them

MakeCudaPlans loop_plans(CudaPrecision precision, Fusion fusion = Fusion::none);

}  // namespace jem
