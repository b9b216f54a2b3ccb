// The way back to data of a convolution of stride 1 as what it is: a convolution of the output's gradient with weights whose taps are
// turned by half a circle and whose channels are exchanged. A library's forward engines may have tiles that fit better than those of its
// data gradients.
#pragma once

#include <memory>

#include "engine/device/cuda/convolution/provider.h"

namespace jem {

// of: whose forward engines these are; it must outlive the provider.
std::unique_ptr<ConvProvider> make_turned_provider(ConvProvider& of);

}  // namespace jem
