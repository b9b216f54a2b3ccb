// Which engines a convolution gets: what is remembered, or the fastest of those that compute the same as the plain form; without a GPU
// the first. It knows the providers' interface and none of them.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/device/choices.h"
#include "engine/device/cuda/convolution/provider.h"
#include "kernels/cuda/cuda_launcher.h"

namespace jem {

struct CudaPlanSettings {
    CudaPrecision precision = CudaPrecision::f32;
    bool nondeterministic = false;  // let engines in that do not repeat bit for bit
    std::string cache_file;         // timed choices are remembered there; empty: not

    // Of one convolution. In f32, without tensor cores, minimal filtering pays most, and wants a batch's transformed tensors in memory:
    // on an H100 an iteration of WRN-10-10 takes 0.257 s within 512 MiB, and 0.231 without a limit, its arena then being 2220 MiB in place
    // of 1165.
    size_t workspace_limit() const { return size_t{precision == CudaPrecision::f32 ? 2048u : 512u} << 20; }
};

// What all convolution plans of a device share.
struct ConvPlanning {
    CudaLauncher& launcher;
    Ops& ops;
    std::string gpu;  // for people
    CudaPlanSettings settings;
    bool on_device;  // false: nothing can be executed
    std::vector<std::unique_ptr<ConvProvider>> providers;
    Choices choices;
    bool told = false;  // that convolutions are being timed

    DType activation() const { return activation_type(settings.precision); }
    ConvProblem problem(const ConvShape& shape, int64_t batch, ConvAlgorithm algorithm, const ConvPart& part) const;
};

// "The whole" is a pass with all the ops around it that are wanted, named by the fusion that would do them all.
struct PlannedBatch {
    int64_t batch = 0;
    bool backward = false;
    std::map<ConvPart, std::shared_ptr<const ConvEngine>> engines = {};
    std::map<Fusion, Fusion> best = {};  // by the whole: what the convolution does of it

    Fusion best_of(Fusion whole) const {
        const auto found = best.find(whole);
        return found == best.end() ? Fusion::none : found->second;
    }
};

std::vector<PlannedBatch> choose_engines(ConvPlanning& planning, const ConvShape& shape, const ConvOptions& options);

}  // namespace jem
