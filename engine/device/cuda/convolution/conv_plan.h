// A convolution of the CUDA device, by whatever engines the search has chosen.
#pragma once

#include <memory>

#include "engine/device/cuda/convolution/search.h"

namespace jem {

// planning must outlive it.
std::unique_ptr<ConvPlan> make_cuda_conv_plan(ConvPlanning& planning, const ConvShape& shape, const ConvOptions& options);

}  // namespace jem
