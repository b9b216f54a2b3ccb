// Engines of convolutions on the emulated machine, one by one, against loops.
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
#include "tests/check.h"
#include "tests/emulation/control.h"
#include "tests/emulation/loop_plans.h"

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

// What an engine wrote, a tensor after the other.
using Outputs = std::vector<std::vector<double>>;

// The operands of one problem on an emulated machine, made numbers, and engines that compute it from them.
class OnOperands {
public:
    // make: the provider in question, given the launcher; its engines are held against the loops.
    template <class Make>
    OnOperands(const ConvProblem& problem, uint64_t seed, Make make) : problem_(problem) {
        cuda_on_host::reset({.seed = seed});
        stream_ = std::make_unique<OnStream>();
        ops_ = make_cuda_ops(*stream_, nullptr, activation_type(problem.precision));
        TestData data(7);
        for (const ConvOperand& o : operands_of(problem)) {
            int64_t count = 1;
            for (const int64_t d : o.dims) count *= d;
            values_[o.role] = {o.type, data.normals(count)};
        }
        loops_ = make_loop_provider(*stream_, loops_with(LoopFusion::both));
        provider_ = make(*stream_);
    }
    std::unique_ptr<ConvEngine> loops() { return loops_->engine(problem_, size_t{0}); }
    ConvProvider& provider() { return *provider_; }

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
        if (has_residual(problem_.fusion)) p[ConvRole::y] = p[ConvRole::residual];
        if (problem_.fusion == Fusion::accumulate) p[ConvRole::w] = p[ConvRole::accumulated_w];
        if (problem_.pass != ConvPass::backward_weights && engine.weights() != WeightForm::plain) {
            const Array w = arrays.at(ConvRole::w), other{bytes(w.bytes()), w.type, w.count};
            write_weights(*ops_, engine.weights(), other, w, problem_.shape);
            p[role_of(engine.weights())] = other.data;
        }
        std::byte* workspace = bytes(std::max<size_t>(engine.workspace_bytes(), 1));
        engine.run(p, workspace);
        const ConvRole out = problem_.pass == ConvPass::forward         ? ConvRole::y
                             : problem_.pass == ConvPass::backward_data ? ConvRole::x
                                                                        : ConvRole::w;
        Outputs outputs;
        for (const ConvRole role : {out, ConvRole::sum, ConvRole::sum_of_products})
            if (role == out || has_sums(problem_.fusion))
                outputs.push_back(download({p[role], arrays.at(role).type, arrays.at(role).count}));
        return outputs;
    }

private:
    void upload(const Array& to, const std::vector<double>& values) {
        const std::vector<float> wide(values.begin(), values.end());
        const std::vector<Bf16> narrow(wide.begin(), wide.end());
        const void* from = to.type == DType::bf16 ? static_cast<const void*>(narrow.data()) : wide.data();
        const cuda::PinnedMemory staging(to.bytes());
        std::memcpy(staging.data(), from, to.bytes());
        cuda::check(cudaMemcpyAsync(to.data, staging.data(), to.bytes(), cudaMemcpyHostToDevice, stream_->stream()), "upload");
        cuda::check(cudaStreamSynchronize(stream_->stream()), "wait");
    }
    std::vector<double> download(const Array& from) {
        std::vector<float> wide(static_cast<size_t>(from.count));
        std::vector<Bf16> narrow(from.type == DType::bf16 ? wide.size() : 0);
        void* to = from.type == DType::bf16 ? static_cast<void*>(narrow.data()) : wide.data();
        const cuda::PinnedMemory staging(from.bytes());
        cuda::check(cudaMemcpyAsync(staging.data(), from.data, from.bytes(), cudaMemcpyDeviceToHost, stream_->stream()), "download");
        cuda::check(cudaStreamSynchronize(stream_->stream()), "wait");
        std::memcpy(to, staging.data(), from.bytes());
        std::copy(narrow.begin(), narrow.end(), wide.begin());
        return {wide.begin(), wide.end()};
    }

    ConvProblem problem_;
    std::unique_ptr<OnStream> stream_;
    std::unique_ptr<Ops> ops_;
    std::map<ConvRole, std::pair<DType, std::vector<double>>> values_;
    std::unique_ptr<ConvProvider> loops_, provider_;
};

// Every pass, alone and with all that may be fused with it.
inline std::vector<ConvPart> all_parts() {
    std::vector<ConvPart> all;
    for (const ConvPass pass : {ConvPass::forward, ConvPass::backward_data, ConvPass::backward_weights}) all.push_back({pass});
    for (const Fusion f : kForwardFusions) all.push_back({ConvPass::forward, f});
    for (const Fusion f : kBackwardFusions) all.push_back({pass_of(f), f});
    return all;
}

// Each engine of a provider against the loops; limits: absolute ones in units of a tensor's rms.
template <class Make>
void check_engines(const ConvProblem& problem, uint64_t seed, Make make, Tolerance limits) {
    CAPTURE(problem.shape.text());
    CAPTURE(problem.batch);
    CAPTURE(std::string(pass_name(problem.pass)));
    CAPTURE(std::string(fusion_name(problem.fusion)));
    OnOperands on(problem, seed, make);
    ConvProvider& provider = on.provider();
    REQUIRE(provider.supports(problem));
    const Outputs want = on.run(*on.loops());
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
