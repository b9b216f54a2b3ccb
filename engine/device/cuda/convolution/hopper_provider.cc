#include "engine/device/cuda/convolution/hopper_provider.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/device/cuda/convolution/hopper/launch.h"

namespace jem {
namespace {

const std::string kPrefix = "hopper ";

// What the kernels see: on the way back to data the output is what comes in.
hopper::Shape shape_of(const ConvProblem& p) {
    const ConvShape& s = p.shape;
    const bool turned = p.pass == ConvPass::backward_data;
    return {.n = static_cast<int>(p.batch),
            .h = static_cast<int>(s.height),
            .w = static_cast<int>(s.width),
            .c = static_cast<int>(turned ? s.out_channels : s.in_channels),
            .k = static_cast<int>(turned ? s.in_channels : s.out_channels)};
}

template <class T>
T* pointer(const ConvPointers& p, ConvRole role) {
    return static_cast<T*>(p[role]);
}

class ConvolutionEngine final : public ConvEngine {
public:
    ConvolutionEngine(CudaLauncher& launcher, const ConvProblem& problem, const hopper::ConvVariant& variant, int blocks, std::string name)
        : launcher_(launcher), problem_(problem), shape_(shape_of(problem)), variant_(variant), blocks_(blocks), name_(std::move(name)) {}

    std::string name() const override { return name_; }
    size_t workspace_bytes() const override {
        if (!has_sums(problem_.fusion)) return 0;
        return static_cast<size_t>(hopper::pixel_blocks(shape_)) * 2 * static_cast<size_t>(shape_.k) * sizeof(float);
    }
    WeightForm weights() const override { return problem_.pass == ConvPass::forward ? WeightForm::tiled : WeightForm::turned_tiled; }
    void run(const ConvPointers& at, std::byte* workspace) const override {
        check_addresses(problem_, at, weights());
        const bool forward = problem_.pass == ConvPass::forward;
        const Fusion f = problem_.fusion;
        const auto f32 = [&](ConvRole role, bool used) { return used ? pointer<const float>(at, role) : nullptr; };
        const auto bf16 = [&](ConvRole role, bool used) { return used ? pointer<uint16_t>(at, role) : nullptr; };
        const bool leaky_backward = variant_.leaky_backward;
        const hopper::ConvParams p{.shape = shape_,
                                   .x = bf16(forward ? ConvRole::x : ConvRole::y, true),
                                   .w = bf16(role_of(weights()), true),
                                   .y = bf16(forward ? ConvRole::y : ConvRole::x, true),
                                   .scale = f32(ConvRole::scale, variant_.norm),
                                   .shift = f32(ConvRole::shift, variant_.norm),
                                   .bias = f32(ConvRole::bias, forward && f != Fusion::none),
                                   .residual = bf16(ConvRole::residual, has_residual(f)),
                                   .behind_x = bf16(ConvRole::norm_input, leaky_backward),
                                   .centre = f32(ConvRole::centre, has_sums(f)),
                                   .behind_scale = f32(ConvRole::scale, leaky_backward),
                                   .behind_shift = f32(ConvRole::shift, leaky_backward),
                                   .partials = has_sums(f) ? reinterpret_cast<float*>(workspace) : nullptr,
                                   .slope = problem_.slope,
                                   .units = 0,
                                   .trouble = nullptr};
        hopper::convolve(launcher_.stream(), variant_, p, blocks_);
        if (p.partials != nullptr)
            hopper::add_partials(launcher_.stream(), p.partials, hopper::pixel_blocks(shape_), shape_.k, pointer<float>(at, ConvRole::sum),
                                 pointer<float>(at, ConvRole::sum_of_products));
    }

private:
    CudaLauncher& launcher_;
    ConvProblem problem_;
    hopper::Shape shape_;
    hopper::ConvVariant variant_;
    int blocks_;
    std::string name_;
};

class WeightGradientEngine final : public ConvEngine {
public:
    WeightGradientEngine(CudaLauncher& launcher, const ConvProblem& problem, int tile_channels, int splits, std::string name)
        : launcher_(launcher),
          problem_(problem),
          shape_(shape_of(problem)),
          tile_channels_(tile_channels),
          splits_(splits),
          name_(std::move(name)) {}

    static size_t workspace_bytes(const hopper::Shape& s, int splits) {
        return static_cast<size_t>(hopper::grad_partial_index(s, splits, 0, 0, 0)) * sizeof(float);
    }

    std::string name() const override { return name_; }
    size_t workspace_bytes() const override { return workspace_bytes(shape_, splits_); }
    void run(const ConvPointers& at, std::byte* workspace) const override {
        check_addresses(problem_, at, weights());
        const bool accumulates = problem_.fusion == Fusion::accumulate;
        const hopper::GradParams p{.shape = shape_,
                                   .x = pointer<const uint16_t>(at, ConvRole::x),
                                   .dy = pointer<const uint16_t>(at, ConvRole::y),
                                   .partials = reinterpret_cast<float*>(workspace),
                                   .splits = splits_,
                                   .trouble = nullptr};
        // Where it accumulates, w is accumulated_w.
        hopper::weight_gradient(launcher_.stream(), tile_channels_, p, accumulates ? nullptr : pointer<uint16_t>(at, ConvRole::w),
                                accumulates ? pointer<float>(at, ConvRole::w) : nullptr);
    }

private:
    CudaLauncher& launcher_;
    ConvProblem problem_;
    hopper::Shape shape_;
    int tile_channels_, splits_;
    std::string name_;
};

class HopperProvider final : public ConvProvider {
public:
    HopperProvider(CudaLauncher& launcher, const GpuDescription& gpu)
        : launcher_(launcher), sm_(gpu.sm), multiprocessors_(gpu.multiprocessors) {}

    std::string key() const override { return "hopper 1"; }  // with its version
    bool supports(const ConvProblem& p) const override {
        const ConvShape& s = p.shape;
        const bool of_its_kind = sm_ == 90 && p.precision == CudaPrecision::bf16 && p.algorithm == ConvAlgorithm::own &&
                                 s.kernel == BothSides(3) && s.stride == BothSides(1) && s.padding == BothSides(1) &&
                                 s.height % hopper::kEdge == 0 && s.width % hopper::kEdge == 0;
        if (!of_its_kind || s.in_channels % kChannels != 0 || s.out_channels % kChannels != 0) return false;
        if (has_norm(p.fusion) && s.in_channels > hopper::kMaxNormChannels) return false;
        // Offsets are of 31 bits.
        return p.batch * s.height * s.width * std::max(s.in_channels, s.out_channels) <= INT32_MAX;
    }
    size_t tries(const ConvProblem& p) const override {
        return p.pass == ConvPass::backward_weights ? splits(p).size() : variants(p).size();
    }
    std::unique_ptr<ConvEngine> engine(const ConvProblem& p, size_t rank) override {
        if (!supports(p) || rank >= tries(p)) return nullptr;
        return p.pass == ConvPass::backward_weights ? made(p, splits(p)[rank]) : made(p, variants(p)[rank]);
    }
    std::unique_ptr<ConvEngine> engine(const ConvProblem& p, const std::string& name) override {
        if (!supports(p) || !name.starts_with(kPrefix)) return nullptr;
        if (p.pass == ConvPass::backward_weights) {
            for (const int n : splits(p))
                if (name_of(p, n) == name) return made(p, n);
        } else {
            for (const hopper::ConvVariant& v : variants(p))
                if (name_of(v) == name) return made(p, v);
        }
        return nullptr;
    }
    std::unique_ptr<ConvEngine> first(const ConvProblem& p) override { return engine(p, 0); }

private:
    static constexpr int64_t kChannels = 32;  // multiples: a chunk of what comes in, the narrowest tile of what goes out

    // The widest tiles first; narrower ones where there are too few of those for all multiprocessors.
    static std::vector<hopper::ConvVariant> variants(const ConvProblem& p) {
        const int channels = shape_of(p).k;
        std::vector<hopper::ConvVariant> all;
        for (const int tile : {160, 128, 64, 32}) {
            if (channels % tile != 0 || (!all.empty() && (tile == 32 || all.front().tile_channels == 160))) continue;
            for (const int blocks : {4, 2})
                for (const int cluster : {1, 2})
                    if (cluster == 1 || tile >= 128)
                        all.push_back({.tile_channels = tile,
                                       .pixel_blocks = blocks,
                                       .cluster = cluster,
                                       .norm = has_norm(p.fusion),
                                       .leaky_backward = p.fusion == Fusion::leaky_backward_sums});
        }
        return all;
    }
    static int grad_tile(const ConvProblem& p) {
        for (const int tile : {80, 64})
            if (p.shape.out_channels % tile == 0) return tile;
        return 32;
    }
    // As many as fill all multiprocessors once, twice, three times.
    std::vector<int> splits(const ConvProblem& p) const {
        constexpr int kMostRounds = 3;
        const hopper::Shape s = shape_of(p);
        std::vector<int> all;
        for (int rounds = 1; rounds <= kMostRounds; ++rounds) {
            const int n = std::clamp(rounds * multiprocessors_ / hopper::grad_tiles(s, grad_tile(p)), 1, hopper::pixel_blocks(s));
            if ((all.empty() || all.back() != n) && WeightGradientEngine::workspace_bytes(s, n) <= p.workspace_limit) all.push_back(n);
        }
        return all;
    }

    static std::string name_of(const hopper::ConvVariant& v) {
        return kPrefix + "tile " + std::to_string(v.pixel_blocks * hopper::kBlockPixels) + "x" + std::to_string(v.tile_channels) +
               (v.cluster > 1 ? " cluster " + std::to_string(v.cluster) : "");
    }
    static std::string name_of(const ConvProblem& p, int splits) {
        return kPrefix + "tile " + std::to_string(hopper::kGradM) + "x" + std::to_string(grad_tile(p)) + " splits " +
               std::to_string(splits);
    }

    std::unique_ptr<ConvEngine> made(const ConvProblem& p, const hopper::ConvVariant& v) {
        const int blocks = hopper::prepare(v, multiprocessors_);
        if (blocks == 0) return nullptr;
        return std::make_unique<ConvolutionEngine>(launcher_, p, v, blocks, name_of(v));
    }
    std::unique_ptr<ConvEngine> made(const ConvProblem& p, int splits) {
        const int tile = grad_tile(p);
        if (!hopper::prepare_weight_gradient(tile)) return nullptr;
        return std::make_unique<WeightGradientEngine>(launcher_, p, tile, splits, name_of(p, splits));
    }

    CudaLauncher& launcher_;
    int sm_, multiprocessors_;
};

}  // namespace

std::unique_ptr<ConvProvider> make_hopper_provider(CudaLauncher& launcher, const GpuDescription& gpu) {
    return std::make_unique<HopperProvider>(launcher, gpu);
}

}  // namespace jem
