// Engines of convolutions on a GPU, or the emulated one, one by one, against loops on the host.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/device/cuda/convolution/provider.h"
#include "engine/device/cuda/owned.h"
#include "engine/device/cuda/runtime.h"
#include "kernels/bf16.h"
#include "kernels/cuda/cuda_launcher.h"
#include "tests/check.h"
#include "tests/conv_reference.h"

namespace jem {

// A stream whose launches nobody counts.
class OnStream final : public CudaLauncher {
public:
    bool announce(const char*, const Work&) override { return true; }
    void launched() noexcept override {}
    cudaStream_t stream() const override { return stream_.get(); }

private:
    cuda::Stream stream_;
};

inline ConvShape conv3x3(int64_t in, int64_t out, int64_t height, int64_t width) {
    return {.in_channels = in, .out_channels = out, .height = height, .width = width, .kernel = 3, .stride = 1};
}

// What an engine wrote, a tensor after the other.
using Outputs = std::vector<std::vector<double>>;

// The operands of one problem, made numbers, and engines that compute it from them.
class OnOperands {
public:
    explicit OnOperands(const ConvProblem& problem) : problem_(problem) {
        ops_ = make_cuda_ops(stream_, nullptr, activation_type(problem.precision));
        TestData data(7);
        for (const ConvOperand& o : operands_of(problem)) {
            int64_t count = 1;
            for (const int64_t d : o.dims) count *= d;
            values_[o.role] = {o.type, data.normals(count)};
        }
    }
    CudaLauncher& launcher() { return stream_; }

    Outputs reference() const {
        std::map<ConvRole, std::vector<std::byte>> memory;
        ConvPointers p;
        for (const auto& [role, value] : values_) {
            memory[role] = stored(value.first, value.second);
            p[role] = memory[role].data();
        }
        in_place(p);
        std::vector<std::byte> scratch(conv_reference::scratch_bytes(problem_));
        if (activation_type(problem_.precision) == DType::bf16)
            conv_reference::convolve<Bf16>(problem_, p, scratch.data());
        else
            conv_reference::convolve<float>(problem_, p, scratch.data());
        Outputs outputs;
        for (const ConvRole role : written()) outputs.push_back(read(static_cast<const std::byte*>(p[role]), values_.at(role)));
        return outputs;
    }

    // In place where the network calls it so: the residual is y, the sum is the gradient of the weights.
    Outputs run(const ConvEngine& engine) {
        std::vector<std::unique_ptr<cuda::DeviceMemory>> memory;
        const auto bytes = [&](size_t count) {
            memory.push_back(std::make_unique<cuda::DeviceMemory>(count));
            return memory.back()->data();
        };
        ConvPointers p;
        std::map<ConvRole, Array> arrays;
        for (const auto& [role, value] : values_) {
            const auto count = static_cast<int64_t>(value.second.size());
            const Array a{bytes(value.second.size() * size_of(value.first)), value.first, count};
            upload(a, value.second);
            arrays[role] = a;
            p[role] = a.data;
        }
        in_place(p);
        if (problem_.pass != ConvPass::backward_weights && engine.weights() != WeightForm::plain) {
            const Array w = arrays.at(ConvRole::w), other{bytes(w.bytes()), w.type, w.count};
            write_weights(*ops_, engine.weights(), other, w, problem_.shape);
            p[role_of(engine.weights())] = other.data;
        }
        std::byte* workspace = bytes(std::max<size_t>(engine.workspace_bytes(), 1));
        engine.run(p, workspace);
        Outputs outputs;
        for (const ConvRole role : written()) outputs.push_back(download({p[role], arrays.at(role).type, arrays.at(role).count}));
        return outputs;
    }

private:
    using Value = std::pair<DType, std::vector<double>>;

    void in_place(ConvPointers& p) const {
        if (has_residual(problem_.fusion)) p[ConvRole::y] = p[ConvRole::residual];
        if (problem_.fusion == Fusion::accumulate) p[ConvRole::w] = p[ConvRole::accumulated_w];
    }
    std::vector<ConvRole> written() const {
        std::vector<ConvRole> roles = {problem_.pass == ConvPass::forward         ? ConvRole::y
                                       : problem_.pass == ConvPass::backward_data ? ConvRole::x
                                                                                  : ConvRole::w};
        if (has_sums(problem_.fusion)) roles.insert(roles.end(), {ConvRole::sum, ConvRole::sum_of_products});
        return roles;
    }
    static std::vector<std::byte> stored(DType type, const std::vector<double>& values) {
        const std::vector<float> wide(values.begin(), values.end());
        const std::vector<Bf16> narrow(wide.begin(), wide.end());
        const bool real = type == DType::f32;
        std::vector<std::byte> bytes(values.size() * size_of(type));
        std::memcpy(bytes.data(), real ? static_cast<const void*>(wide.data()) : narrow.data(), bytes.size());
        return bytes;
    }
    static std::vector<double> read(const std::byte* from, const Value& like) {
        std::vector<float> wide(like.second.size());
        std::vector<Bf16> narrow(wide.size());
        if (like.first == DType::f32) {
            std::memcpy(wide.data(), from, wide.size() * sizeof(float));
        } else {
            std::memcpy(static_cast<void*>(narrow.data()), from, narrow.size() * sizeof(Bf16));
            std::copy(narrow.begin(), narrow.end(), wide.begin());
        }
        return {wide.begin(), wide.end()};
    }
    void upload(const Array& to, const std::vector<double>& values) {
        const std::vector<std::byte> bytes = stored(to.type, values);
        const cuda::PinnedMemory staging(bytes.size());
        std::memcpy(staging.data(), bytes.data(), bytes.size());
        cuda::check(cudaMemcpyAsync(to.data, staging.data(), bytes.size(), cudaMemcpyHostToDevice, stream_.stream()), "upload");
        cuda::check(cudaStreamSynchronize(stream_.stream()), "wait for the GPU");
    }
    std::vector<double> download(const Array& from) {
        const cuda::PinnedMemory staging(from.bytes());
        cuda::check(cudaMemcpyAsync(staging.data(), from.data, from.bytes(), cudaMemcpyDeviceToHost, stream_.stream()), "download");
        cuda::check(cudaStreamSynchronize(stream_.stream()), "wait for the GPU");
        return read(staging.data(), {from.type, std::vector<double>(static_cast<size_t>(from.count))});
    }

    ConvProblem problem_;
    OnStream stream_;
    std::unique_ptr<Ops> ops_;
    std::map<ConvRole, Value> values_;
};

// Every pass, alone and with all that may be fused with it.
inline std::vector<ConvPart> all_parts() {
    std::vector<ConvPart> all;
    for (const ConvPass pass : {ConvPass::forward, ConvPass::backward_data, ConvPass::backward_weights}) all.push_back({pass});
    for (const Fusion f : kForwardFusions) all.push_back({ConvPass::forward, f});
    for (const Fusion f : kBackwardFusions) all.push_back({pass_of(f), f});
    return all;
}

// Each engine of a provider against the loops. make: the provider, given the launcher; limits: absolute ones in units of a tensor's rms.
template <class Make>
void check_engines(const ConvProblem& problem, Make make, Tolerance limits) {
    CAPTURE(problem.shape.text());
    CAPTURE(problem.batch);
    CAPTURE(std::string(pass_name(problem.pass)));
    CAPTURE(std::string(fusion_name(problem.fusion)));
    OnOperands on(problem);
    const std::unique_ptr<ConvProvider> made_provider = make(on.launcher());
    ConvProvider& provider = *made_provider;
    REQUIRE(provider.supports(problem));
    const Outputs want = on.reference();
    const size_t tries = provider.tries(problem);
    size_t made = 0;
    for (size_t rank = 0; rank < tries; ++rank) {
        const auto engine = provider.engine(problem, rank);
        if (engine == nullptr) continue;
        CAPTURE(engine->name());
        ++made;
        const Outputs got = on.run(*engine);
        REQUIRE(got.size() == want.size());
        for (size_t i = 0; i < got.size(); ++i) {
            double squares = 0;
            for (const double v : want[i]) squares += v * v;
            const double rms = std::sqrt(squares / static_cast<double>(want[i].size()));
            check_close(i == 0 ? "output" : "sums", got[i], want[i], {.absolute = limits.absolute * rms, .relative = limits.relative});
        }
        const auto again = provider.engine(problem, engine->name());
        REQUIRE(again != nullptr);
        CHECK(again->name() == engine->name());
    }
    CHECK(made > 0);
    CHECK(provider.engine(problem, tries) == nullptr);
    CHECK(provider.engine(problem, std::string("another's")) == nullptr);
}

}  // namespace jem
