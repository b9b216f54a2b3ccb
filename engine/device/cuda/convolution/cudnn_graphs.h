// Convolutions as cuDNN graphs: one convolution of one batch size, alone or with what stands before and behind it. Built for a
// GPU at hand or for one that is only described; the second can be planned in every detail, but not executed. The only code
// that knows cudnn-frontend. Convolutions that are compiled at run time (all fusions) need a driver even to be planned.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "engine/device/cuda/convolution/problem.h"
#include "engine/device/cuda/cuda_device.h"

namespace jem {

// cuDNN cannot plan what is asked, or was about to accept what it computes wrongly. "<problem> (<why>). <what to do>"
class CudnnError : public CudaUnavailable {
public:
    using CudaUnavailable::CudaUnavailable;
};

// Refuses what cuDNN would accept and compute wrongly, or plan with a huge scratch: filters of fewer channels than the input
// (a grouped convolution without a word), sizes that do not match, more elements than engines index, odd channel counts.
// Throws CudnnError.
void check_operands(const ConvProblem& problem, const std::vector<ConvOperand>& operands);

// cuDNN for one GPU.
class Cudnn {
public:
    explicit Cudnn(const GpuDescription& described);
    explicit Cudnn(const CudaLauncher& launcher);  // the current GPU; work is queued on the launcher's stream of that moment
    // Plans on a thread of its own what executing queues: a handle is one thread's at a time.
    explicit Cudnn(const Cudnn* executing);
    Cudnn(const Cudnn&) = delete;  // owns cuDNN's handle
    Cudnn& operator=(const Cudnn&) = delete;
    ~Cudnn();

    // The library's, as 10000 * major + 100 * minor + patch.
    static int64_t version();
    // Whether graphs that are compiled at run time can be planned here.
    static bool has_driver();

    struct Impl;
    const Impl& impl() const { return *impl_; }

private:
    std::unique_ptr<Impl> impl_;
};

// One graph with its ranked engines: cuDNN's heuristics first, then its fallbacks, without those that the problem rules out.
class ConvGraph {
public:
    // Throws CudnnError where cuDNN has no engine. cudnn must outlive the graph.
    ConvGraph(const Cudnn& cudnn, const ConvProblem& problem);
    ConvGraph(const ConvGraph&) = delete;  // owns cuDNN's plan
    ConvGraph& operator=(const ConvGraph&) = delete;
    ~ConvGraph();

    size_t engines() const;
    std::string engine(size_t rank) const;      // "cudnn eng67 k2=11 k6=0", the same for the same engine and settings
    bool nondeterministic(size_t rank) const;   // whether it is marked so
    bool uses_tensor_cores(size_t rank) const;  // or rounds its inputs: not for f32
    // Makes the engine of this rank the one that executes. False where cuDNN refuses after all, or it needs more workspace
    // than allowed; why says it.
    bool finalise(size_t rank, std::string* why = nullptr);
    // The first that finalises. Throws CudnnError, with every refusal, where none does.
    void finalise_first();

    // Of the engine that was finalised last:
    size_t rank() const;
    size_t workspace_bytes() const;
    // Queues it. Allocates nothing on the GPU, decides nothing, waits for nothing: it may be recorded. Throws
    // std::runtime_error.
    void execute(const ConvPointers& pointers, std::byte* workspace) const;

    const ConvProblem& problem() const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace jem
