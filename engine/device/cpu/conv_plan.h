// Convolutions and the linear head on the CPU: by oneDNN, or by this program's own minimal filtering (winograd.h).
#pragma once

#include <memory>

#include "engine/device/device.h"
#include "engine/device/host/host_stream.h"

namespace jem {

// activation: f32, in blocks of channels, or bf16, channels last. ops: of the same device and stream, for what is fused.
std::unique_ptr<ConvPlan> make_cpu_conv_plan(HostStream& stream, Ops& ops, int threads, DType activation, const ConvShape& shape,
                                             const ConvOptions& options);
// The one by minimal filtering, for what winograd::can; lanes: of its vectors, and the channel block of activations in f32.
std::unique_ptr<ConvPlan> make_winograd_plan(HostStream& stream, int threads, int64_t lanes, DType activation, const ConvShape& shape,
                                             const ConvOptions& options);
std::unique_ptr<LinearPlan> make_cpu_linear_plan(HostStream& stream, int64_t in, int64_t out, const std::vector<int64_t>& batches);

}  // namespace jem
