#include "engine/device/cuda/convolution/plans.h"

#include <string>
#include <utility>

#include "engine/device/cuda/convolution/conv_plan.h"

namespace jem {
namespace {

// What choices by time hold for.
std::string machine_of(const GpuDescription& gpu, const ConvProviders& providers) {
    std::string names;
    for (const auto& provider : providers)
        if (!provider->name().empty()) names += (names.empty() ? "" : ", ") + provider->name();
    return gpu.title + " | " + names;
}

}  // namespace

CudaPlans::CudaPlans(CudaLauncher& launcher, Ops& ops, const GpuDescription& gpu, const CudaPlanSettings& settings, bool on_device,
                     ConvProviders convolutions, MakeLinearPlan linear)
    : planning_{.launcher = launcher,
                .ops = ops,
                .gpu = gpu.title,
                .settings = settings,
                .on_device = on_device,
                .providers = std::move(convolutions),
                .choices = Choices(machine_of(gpu, planning_.providers), on_device ? settings.cache_file : "")},
      linear_(std::move(linear)) {}

std::unique_ptr<ConvPlan> CudaPlans::convolution(const ConvShape& shape, const ConvOptions& options) {
    return make_cuda_conv_plan(planning_, shape, options);
}

}  // namespace jem
