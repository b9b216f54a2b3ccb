#include "engine/device/cpu/conv_plan.h"

#include <stdexcept>

namespace jem {

const CpuConvProvider& cpu_conv_provider(DType activation, const ConvShape& shape, const ConvOptions& options) {
    // Another one is a file with its provider, a declaration in conv_plan.h, and its name here, in front of those that it outdoes.
    for (const CpuConvProvider* provider : {&kWinogradConv, &kOnednnConv})
        if (provider->supports(activation, shape, options)) return *provider;
    throw std::logic_error("No provider supports the convolution " + shape.text() + ".");
}

}  // namespace jem
