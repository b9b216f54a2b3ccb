// Where engines of a convolution are tried on the GPU at hand: memory for operands, a clock, and whether two results agree.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <vector>

#include "engine/device/convolution.h"
#include "engine/device/cuda/convolution/planned_call.h"
#include "engine/device/cuda/convolution/problem.h"
#include "engine/device/cuda/owned.h"
#include "kernels/bf16.h"
#include "kernels/cuda/cuda_launcher.h"

namespace jem {

// Memory for every operand of one convolution of one batch size, and a clock. Lives while plans are made, never longer.
class Trial {
public:
    // forms: that engines read, besides the plain one; workspace_bytes: of the engine that needs the most.
    Trial(CudaLauncher& launcher, DType activation, const ConvShape& shape, double slope, int64_t batch, std::vector<WeightForm> forms,
          size_t workspace_bytes);

    bool possible() const { return memory_->data() != nullptr; }  // false: too little memory is free
    enum Part : size_t { kX, kY, kResidual, kW, kWeightSum = kW + kWeightForms.size(), kOtherX, kOfChannels, kParts };
    // One value a channel: of the input and its norm, then of the output and the norm behind it. kSums are two.
    enum OfChannel : int64_t {
        kMean,
        kInvStd,
        kScale,
        kBeta,
        kA,
        kB,
        kShift,
        kBias,
        kNextMean,
        kNextInvStd,
        kNextScale,
        kGamma,
        kRunning,
        kSums,
        kArrays = kSums + 2
    };
    std::byte* at(Part part) const { return memory_->data() + offsets_[part]; }
    std::byte* workspace() const { return pattern() + pattern_bytes(); }

    // Numbers of about 1 everywhere: what an engine does with zeros says little, and one result is compared with another.
    void fill();

    Tensor y(Part part) const {
        return {at(part), activation_, batch_, shape_.out_channels, shape_.out_height(), shape_.out_width(), shape_.out_channels};
    }
    Tensor x(Part part) const {
        return {at(part), activation_, batch_, shape_.in_channels, shape_.height, shape_.width, shape_.in_channels};
    }
    Array of_channel(OfChannel i, int64_t count) const {
        return Array{at(kOfChannels), DType::f32, kArrays * widest()}.slice(i * widest(), count);
    }
    Array of_input(OfChannel i) const { return of_channel(i, shape_.in_channels); }
    Array of_output(OfChannel i) const { return of_channel(i, shape_.out_channels); }
    NormCoefficients norm() const;
    NormCoefficients next_norm() const;
    BatchNormParameters next_parameters() const;
    const std::vector<WeightForm>& forms() const { return forms_; }
    Array weights(WeightForm form) const { return {at(part_of(form)), activation_, shape_.weight_count()}; }
    Array weight_sum() const { return {at(kWeightSum), DType::f32, shape_.weight_count()}; }

    // Median of several rounds, each long enough for the clock. give_up_after: a first run slower than this ends it (infinity).
    double seconds(const std::function<void()>& run, double give_up_after);
    std::vector<float> download(const Array& array);
    void copy(Part to, Part from, size_t bytes);
    void wait();

private:
    static Part part_of(WeightForm form) { return static_cast<Part>(kW + static_cast<size_t>(form)); }
    size_t pattern_bytes() const { return aligned(period_ * (sizeof(float) + sizeof(Bf16))); }
    cudaStream_t stream() const { return launcher_.stream(); }
    int64_t widest() const { return std::max(shape_.in_channels, shape_.out_channels); }
    std::byte* pattern() const { return memory_->data() + operand_bytes_; }
    double timed(const std::function<void()>& run, int runs);
    void make_pattern();

    CudaLauncher& launcher_;
    DType activation_;
    ConvShape shape_;
    double slope_;  // of the LeakyReLU that is fused
    int64_t batch_;
    std::vector<WeightForm> forms_;
    std::array<size_t, kParts> offsets_{};
    size_t operand_bytes_ = 0;
    size_t period_ = 0;                         // of the pattern, in numbers
    std::optional<cuda::DeviceMemory> memory_;  // operands | pattern | workspace
    bool has_pattern_ = false;
    std::optional<cuda::PinnedMemory> staging_;
    cuda::Event begin_, end_;
};

// Whether two results agree as far as sums in another order, and one rounding to the type, allow. Where a LeakyReLU is passed
// backwards (kinks), an input nearer to its kink than the last bit of f32 may take either side: about one in ten million does, and a
// hundred times as many are let pass, far fewer than one wrong row or column of an image.
bool agree(const std::vector<float>& got, const std::vector<float>& want, DType type, bool kinks);

}  // namespace jem
