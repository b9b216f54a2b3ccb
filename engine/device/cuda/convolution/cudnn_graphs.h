// Convolutions as cuDNN graphs: one convolution of one batch size, alone or with what stands before and behind it. Built for a
// GPU at hand or for one that is only described; the second can be planned in every detail, but not executed. The only code
// that knows cudnn-frontend. Convolutions that are compiled at run time (all fusions) need a driver even to be planned.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "engine/device/cuda/cuda_device.h"
#include "engine/device/device.h"

namespace jem {

// cuDNN cannot plan what is asked, or was about to accept what it computes wrongly. "<problem> (<why>). <what to do>"
class CudnnError : public CudaUnavailable {
public:
    using CudaUnavailable::CudaUnavailable;
};

enum class ConvPass { forward, backward_data, backward_weights };
const char* pass_name(ConvPass pass);  // "forward" ...

// What is computed in one graph with the convolution. a = leaky(scale[c] * x + shift[c]) is batch norm with its coefficients
// folded, and the activation behind it. Biases, scales and sums are f32 [C]. Sums are taken over N, H, W: of d = y - centre[c] and of
// d^2, y as it is stored.
enum class Fusion {
    none,
    bias,                      // forward: y = conv(x) + bias
    bias_residual,             // forward: y = conv(x) + bias + residual; residual may be y
    bias_sums,                 // forward: y = conv(x) + bias, sum(d), sum(d^2)
    bias_residual_sums,        // forward: y = conv(x) + bias + residual, sum(d), sum(d^2); residual may be y
    norm_leaky,                // forward: the same four of a
    norm_leaky_residual,       //
    norm_leaky_sums,           //
    norm_leaky_residual_sums,  //
    leaky_backward_sums,       // backward to data: d_z = d_a * leaky'(z), sum(d_z), sum(d_z * (x - centre)), where x is the norm's input
                               // and z = scale * (x - centre) + shift: centre is its mean, shift its beta
    accumulate,                // backward to weights, onto f32: d_w = d_w + gradient
};
const char* fusion_name(Fusion fusion);  // "bias" ...
ConvPass pass_of(Fusion fusion);         // none: forward, though it goes with all
bool has_norm(Fusion fusion);            // norm and leaky of the forward pass
bool has_residual(Fusion fusion);
bool has_sums(Fusion fusion);  // of either pass

struct ConvProblem {
    ConvShape shape;
    int64_t batch = 0;
    ConvPass pass = ConvPass::forward;
    Fusion fusion = Fusion::none;
    CudaPrecision precision = CudaPrecision::f32;
    ConvAlgorithm algorithm = ConvAlgorithm::automatic;
    bool nondeterministic = false;  // let engines in that do not repeat bit for bit, and sums in any order
    size_t workspace_limit = size_t{512} << 20;
};

// What a graph reads and writes. A role names the same tensor in every pass: x is [N, H, W, C] of the input or its gradient ...
enum class ConvRole { x, w, y, bias, residual, scale, shift, norm_input, centre, sum, sum_of_products, accumulated_w };
inline constexpr size_t kConvRoles = 12;

struct ConvOperand {
    ConvRole role = ConvRole::x;
    std::array<int64_t, 4> dims{};  // N, C, H, W (w: O, I, H, W); channels lie side by side in memory
    DType type = DType::f32;
};

// The operands that the problem asks for, in the order of roles.
std::vector<ConvOperand> operands_of(const ConvProblem& problem);
// Refuses what cuDNN would accept and compute wrongly, or plan with a huge scratch: filters of fewer channels than the input
// (a grouped convolution without a word), sizes that do not match, more elements than engines index, odd channel counts.
// Throws CudnnError.
void check_operands(const ConvProblem& problem, const std::vector<ConvOperand>& operands);

// Addresses by role, each a multiple of kCudnnAlignment; those that a problem does not use are null.
struct ConvPointers {
    std::array<void*, kConvRoles> data{};
    void*& operator[](ConvRole role) { return data[static_cast<size_t>(role)]; }
    void* operator[](ConvRole role) const { return data[static_cast<size_t>(role)]; }
};
inline constexpr size_t kCudnnAlignment = 16;

// cuDNN for one GPU.
class Cudnn {
public:
    explicit Cudnn(const GpuDescription& described);
    explicit Cudnn(cudaStream_t stream);  // the current GPU; work is queued on the stream
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
