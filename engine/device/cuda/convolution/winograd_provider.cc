#include "engine/device/cuda/convolution/winograd_provider.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/device/cuda/convolution/planned_call.h"
#include "kernels/ops.h"
#include "kernels/winograd.h"

namespace jem {
namespace {

const std::string kPrefix = "winograd ";

// A convolution is one launch to whoever counts and times, whatever it is made of.
class Unannounced final : public CudaLauncher {
public:
    explicit Unannounced(CudaLauncher& of) : of_(of) {}
    bool announce(const char*, const Work&) override { return true; }
    void launched() noexcept override {}
    cudaStream_t stream() const override { return of_.stream(); }

private:
    CudaLauncher& of_;
};

// What goes in and out: on the way back to data the gradient of y, and that of x.
struct Sides {
    int64_t images, height, width, in, out;

    explicit Sides(const ConvProblem& p)
        : images(p.batch),
          height(p.shape.height),
          width(p.shape.width),
          in(p.pass == ConvPass::forward ? p.shape.in_channels : p.shape.out_channels),
          out(p.pass == ConvPass::forward ? p.shape.out_channels : p.shape.in_channels) {}
    int64_t tiles() const { return winograd::Tiles{images, height, width, 1}.count(); }
    // Weights lie as they are, [36, rows, columns]: forward their rows are what comes out.
    BatchedProductShape product(ConvPass pass) const {
        return {.count = winograd::kPoints, .rows = tiles(), .depth = in, .columns = out, .transposed = pass == ConvPass::forward};
    }
    int64_t weights() const { return in * out; }
    Array points(std::byte* at, int64_t channels) const { return {at, DType::f32, winograd::kPoints * tiles() * channels}; }
    Tensor tensor(void* data, int64_t channels) const { return {data, DType::f32, images, channels, height, width, channels}; }
};

class WinogradEngine final : public ConvEngine {
public:
    WinogradEngine(CudaLauncher& launcher, Ops& ops, const ConvProblem& problem, std::unique_ptr<BatchedProduct> product)
        : launcher_(launcher), ops_(ops), problem_(problem), sides_(problem), product_(std::move(product)) {}

    std::string name() const override { return kPrefix + product_->name(); }
    // points of what goes in | of what comes out | of the weights | the product's
    size_t workspace_bytes() const override { return in_bytes() + out_bytes() + weights_bytes() + product_->workspace_bytes(); }
    void run(const ConvPointers& at, std::byte* workspace) const override {
        check_addresses(problem_, at, weights());
        const Array in = sides_.points(workspace, sides_.in), out = sides_.points(workspace += in_bytes(), sides_.out);
        const Array filter{workspace += out_bytes(), DType::f32, winograd::kPoints * sides_.weights()};
        workspace += weights_bytes();
        const auto of_channel = [&](ConvRole role, bool used, int64_t channels) {
            return used ? Array{at[role], DType::f32, channels} : Array{};
        };
        const Fusion f = problem_.fusion;
        const ConvShape& s = problem_.shape;
        ops_.winograd_weights(filter, {at[ConvRole::w], DType::f32, s.weight_count()}, s.in_channels, !forward());
        ops_.winograd_input(in, sides_.tensor(at[forward() ? ConvRole::x : ConvRole::y], sides_.in),
                            of_channel(ConvRole::scale, has_norm(f), sides_.in), of_channel(ConvRole::shift, has_norm(f), sides_.in),
                            static_cast<double>(problem_.slope));
        product_->run(launcher_.stream(), out.as<float>(), in.as<float>(), filter.as<float>(), workspace);
        const Tensor residual = sides_.tensor(at[ConvRole::residual], sides_.out);
        ops_.winograd_output(sides_.tensor(at[forward() ? ConvRole::y : ConvRole::x], sides_.out), out,
                             of_channel(ConvRole::bias, f != Fusion::none, sides_.out), has_residual(f) ? &residual : nullptr);
    }

private:
    bool forward() const { return problem_.pass == ConvPass::forward; }
    size_t in_bytes() const { return aligned(sides_.points(nullptr, sides_.in).bytes()); }
    size_t out_bytes() const { return aligned(sides_.points(nullptr, sides_.out).bytes()); }
    size_t weights_bytes() const { return aligned(static_cast<size_t>(winograd::kPoints * sides_.weights()) * sizeof(float)); }

    CudaLauncher& launcher_;
    Ops& ops_;
    ConvProblem problem_;
    Sides sides_;
    std::unique_ptr<BatchedProduct> product_;
};

class WinogradProvider final : public ConvProvider {
public:
    WinogradProvider(CudaLauncher& launcher, BatchedProducts products)
        : launcher_(launcher),
          unannounced_(launcher),
          ops_(make_cuda_ops(unannounced_, nullptr, DType::f32)),
          products_(std::move(products)) {}

    std::string key() const override { return "winograd 1 by " + products_.version; }  // with its version
    // Too few channels leave the products too little to do for the transforms.
    bool supports(const ConvProblem& p) const override {
        constexpr int64_t kLeastChannels = 16;
        const ConvShape& s = p.shape;
        return p.precision == CudaPrecision::f32 && p.algorithm != ConvAlgorithm::direct && p.pass != ConvPass::backward_weights &&
               !has_sums(p.fusion) && s.kernel == BothSides(3) && s.stride == BothSides(1) && s.padding == BothSides(1) &&
               std::min(s.in_channels, s.out_channels) >= kLeastChannels;
    }
    size_t tries(const ConvProblem&) const override { return kTries; }
    std::unique_ptr<ConvEngine> engine(const ConvProblem& p, size_t rank) override {
        if (!supports(p) || rank >= kTries) return nullptr;
        auto product = products_.make(Sides(p).product(p.pass), rank);
        if (product == nullptr) return nullptr;
        auto engine = std::make_unique<WinogradEngine>(launcher_, *ops_, p, std::move(product));
        return engine->workspace_bytes() <= p.workspace_limit ? std::move(engine) : nullptr;
    }
    std::unique_ptr<ConvEngine> engine(const ConvProblem& p, const std::string& name) override {
        if (!supports(p) || !name.starts_with(kPrefix)) return nullptr;
        for (size_t rank = 0; rank < kTries; ++rank)
            if (auto made = engine(p, rank); made != nullptr && made->name() == name) return made;
        return nullptr;
    }
    std::unique_ptr<ConvEngine> first(const ConvProblem& p) override { return engine(p, size_t{0}); }

private:
    static constexpr size_t kTries = 4;

    CudaLauncher& launcher_;
    Unannounced unannounced_;
    std::unique_ptr<Ops> ops_;
    BatchedProducts products_;
};

}  // namespace

std::unique_ptr<ConvProvider> make_winograd_provider(CudaLauncher& launcher, BatchedProducts products) {
    return std::make_unique<WinogradProvider>(launcher, std::move(products));
}

}  // namespace jem
