// Convolutions on the CPU: a list of providers, of which the first that supports a convolution plans it. By rule, never by time, so that
// the same seed on the same CPU gives the same bits.
#pragma once

#include <memory>

#include "engine/device/convolution.h"
#include "engine/device/host/host_stream.h"

namespace jem {

// Where plans run. activation: f32, in blocks of channels, or bf16, channels last. ops: of the same device and stream, for what is fused.
struct CpuConvContext {
    HostStream& stream;
    Ops& ops;
    int threads;
    DType activation;
};

struct CpuConvProvider {
    const char* name;
    bool (*supports)(DType activation, const ConvShape& shape, const ConvOptions& options);
    std::unique_ptr<ConvPlan> (*plan)(const CpuConvContext& on, const ConvShape& shape, const ConvOptions& options);
};
extern const CpuConvProvider kWinogradConv;  // winograd/: minimal filtering, for 3x3
extern const CpuConvProvider kOnednnConv;    // all others

const CpuConvProvider& cpu_conv_provider(DType activation, const ConvShape& shape, const ConvOptions& options);

// kWinogradConv's, with as many lanes to a vector, which are the channel block of activations in f32.
std::unique_ptr<ConvPlan> make_winograd_plan(HostStream& stream, int threads, int64_t lanes, DType activation, const ConvShape& shape,
                                             const ConvOptions& options);

}  // namespace jem
