// The linear head on the CPU, by oneDNN.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/device/host/host_stream.h"
#include "engine/device/linear.h"

namespace jem {

std::unique_ptr<LinearPlan> make_cpu_linear_plan(HostStream& stream, int64_t in, int64_t out, const std::vector<int64_t>& batches);

}  // namespace jem
