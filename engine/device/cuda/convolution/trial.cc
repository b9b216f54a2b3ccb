#include "engine/device/cuda/convolution/trial.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "engine/device/cuda/runtime.h"
#include "kernels/bf16.h"

namespace jem {
namespace {

using cuda::check;

constexpr size_t kStagingBytes = size_t{4} << 20;

}  // namespace

Trial::Trial(CudaLauncher& launcher, DType activation, const ConvShape& shape, double slope, int64_t batch, std::vector<WeightForm> forms,
             size_t workspace_bytes)
    : launcher_(launcher), activation_(activation), shape_(shape), slope_(slope), batch_(batch), forms_(std::move(forms)) {
    const auto bytes = [](int64_t count, DType type) { return aligned(static_cast<size_t>(count) * size_of(type)); };
    const int64_t x = batch * shape.in_channels * shape.height * shape.width;
    const int64_t y = batch * shape.out_channels * shape.out_height() * shape.out_width();
    const int64_t w = shape.weight_count();
    std::array<size_t, kParts> sizes{};
    sizes[kX] = sizes[kOtherX] = bytes(x, activation);
    sizes[kY] = sizes[kResidual] = bytes(y, activation);
    sizes[kW] = bytes(w, activation);
    for (const WeightForm form : forms_) sizes[part_of(form)] = bytes(w, activation);
    sizes[kWeightSum] = bytes(w, DType::f32);
    sizes[kOfChannels] = bytes(kArrays * widest(), DType::f32);
    constexpr size_t kMostPeriod = 1000003;  // not periodic in channels, rows or images
    for (size_t i = 0; i < kParts; ++i) {
        offsets_[i] = operand_bytes_;
        operand_bytes_ += sizes[i];
        period_ = std::min(kMostPeriod, std::max(period_, sizes[i] / sizeof(Bf16)));
    }
    memory_.emplace(operand_bytes_ + pattern_bytes() + workspace_bytes);
    if (possible()) check(cudaMemsetAsync(memory_->data(), 0, operand_bytes_, stream()), "clear memory");
}

void Trial::make_pattern() {
    std::vector<float> values(period_);
    uint32_t state = 1;
    for (float& v : values) {
        state = state * 1664525u + 1013904223u;
        v = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
    }
    const std::vector<Bf16> narrow(values.begin(), values.end());
    if (!staging_) staging_.emplace(kStagingBytes);
    const auto upload = [&](std::byte* to, const void* from, size_t bytes) {
        for (size_t at = 0; at < bytes; at += kStagingBytes) {
            const size_t piece = std::min(kStagingBytes, bytes - at);
            std::memcpy(staging_->data(), static_cast<const std::byte*>(from) + at, piece);
            check(cudaMemcpyAsync(to + at, staging_->data(), piece, cudaMemcpyHostToDevice, stream()), "upload");
            wait();
        }
    };
    upload(pattern(), values.data(), period_ * sizeof(float));
    upload(pattern() + period_ * sizeof(float), narrow.data(), period_ * sizeof(Bf16));
}

void Trial::fill() {
    if (!std::exchange(has_pattern_, true)) make_pattern();
    for (size_t i = 0; i < kParts; ++i) {
        const bool real = i == kWeightSum || i == kOfChannels || activation_ == DType::f32;
        const std::byte* from = pattern() + (real ? 0 : period_ * sizeof(float));
        const size_t piece = period_ * (real ? sizeof(float) : sizeof(Bf16));
        const size_t bytes = (i + 1 < kParts ? offsets_[i + 1] : operand_bytes_) - offsets_[i];
        for (size_t done = 0; done < bytes; done += piece)
            check(cudaMemcpyAsync(memory_->data() + offsets_[i] + done, from, std::min(piece, bytes - done), cudaMemcpyDeviceToDevice,
                                  stream()),
                  "copy");
    }
}

NormCoefficients Trial::norm() const {
    return {.mean = of_input(kMean),
            .inv_std = of_input(kInvStd),
            .scale = of_input(kScale),
            .beta = of_input(kBeta),
            .a = of_input(kA),
            .b = of_input(kB),
            .slope = slope_};
}
NormCoefficients Trial::next_norm() const {
    return {.mean = of_output(kNextMean), .inv_std = of_output(kNextInvStd), .scale = of_output(kNextScale), .beta = {}, .a = {}, .b = {}};
}
BatchNormParameters Trial::next_parameters() const {
    return {.gamma = of_output(kGamma), .beta = {}, .running_mean = of_output(kRunning), .running_var = {}};
}

double Trial::seconds(const std::function<void()>& run, double give_up_after) {
    constexpr int kWarmUps = 2, kRounds = 3;
    constexpr double kRoundSeconds = 1e-3;
    constexpr int kMostRuns = 64;
    for (int i = 0; i < kWarmUps; ++i) run();
    const double once = timed(run, 1);
    if (once > give_up_after) return INFINITY;
    const int runs = std::clamp(static_cast<int>(kRoundSeconds / std::max(once, 1e-7)), 1, kMostRuns);
    std::array<double, kRounds> rounds{};
    for (double& r : rounds) r = timed(run, runs);
    std::sort(rounds.begin(), rounds.end());
    return rounds[kRounds / 2];
}

double Trial::timed(const std::function<void()>& run, int runs) {
    check(cudaEventRecord(begin_.get(), stream()), "record an event");
    for (int i = 0; i < runs; ++i) run();
    check(cudaEventRecord(end_.get(), stream()), "record an event");
    check(cudaEventSynchronize(end_.get()), "wait for the GPU");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()), "read a time");
    return 1e-3 * static_cast<double>(milliseconds) / runs;
}

std::vector<float> Trial::download(const Array& array) {
    if (!staging_) staging_.emplace(kStagingBytes);
    const auto n = static_cast<size_t>(array.count);
    std::vector<float> out(n);
    const size_t size = size_of(array.type), most = kStagingBytes / size;
    for (size_t first = 0; first < n; first += most) {
        const size_t count = std::min(most, n - first);
        check(cudaMemcpyAsync(staging_->data(), static_cast<const std::byte*>(array.data) + first * size, count * size,
                              cudaMemcpyDeviceToHost, stream()),
              "read back");
        wait();
        if (array.type == DType::f32) {
            std::memcpy(out.data() + first, staging_->data(), count * size);
            continue;
        }
        const auto* narrow = reinterpret_cast<const Bf16*>(staging_->data());
        std::copy(narrow, narrow + count, out.begin() + static_cast<ptrdiff_t>(first));
    }
    return out;
}

void Trial::copy(Part to, Part from, size_t bytes) {
    check(cudaMemcpyAsync(at(to), at(from), bytes, cudaMemcpyDeviceToDevice, stream()), "copy");
}
void Trial::wait() { check(cudaStreamSynchronize(stream()), "wait for the GPU"); }

bool agree(const std::vector<float>& got, const std::vector<float>& want, DType type, bool kinks) {
    constexpr double kAtTheKink = 1e-5;
    double squares = 0;
    for (const float v : want) squares += static_cast<double>(v) * static_cast<double>(v);
    const double rms = std::sqrt(squares / static_cast<double>(want.size()));
    // One unit of bf16 is 2^-8 of a value; the unfused form rounds once more. f32 and TF32: products are the same, sums of
    // up to a few 100000 terms are not.
    const double relative = type == DType::bf16 ? 0x1p-6 : 1e-3, absolute = relative * rms;
    size_t off = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        const double difference = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
        off += !(difference <= absolute + relative * std::abs(static_cast<double>(want[i])));
    }
    return rms > 0 && static_cast<double>(off) <= (kinks ? kAtTheKink * static_cast<double>(got.size()) : 0);
}

}  // namespace jem
