#include "engine/device/cuda/convolution/turned_provider.h"

#include <algorithm>
#include <string>
#include <utility>

namespace jem {
namespace {

const std::string kPrefix = "turned ";

class TurnedEngine final : public ConvEngine {
public:
    explicit TurnedEngine(std::unique_ptr<ConvEngine> forward) : forward_(std::move(forward)) {}

    std::string name() const override { return kPrefix + forward_->name(); }
    size_t workspace_bytes() const override { return forward_->workspace_bytes(); }
    WeightForm weights() const override { return WeightForm::turned; }
    void run(const ConvPointers& p, std::byte* workspace) const override {
        forward_->run(pointers_to(p[ConvRole::y], p[ConvRole::turned_w], p[ConvRole::x]), workspace);
    }

private:
    std::unique_ptr<ConvEngine> forward_;
};

class TurnedProvider final : public ConvProvider {
public:
    explicit TurnedProvider(ConvProvider& of) : of_(of) {}

    // Images' gradients have too few channels for a forward engine's tiles.
    bool supports(const ConvProblem& p) const override {
        constexpr int64_t kLeastChannels = 16;
        const ConvShape& s = p.shape;
        const bool keeps_size = s.stride == 1 && s.out_height() == s.height && s.out_width() == s.width;
        return p.pass == ConvPass::backward_data && p.fusion == Fusion::none && keeps_size && s.in_channels >= kLeastChannels &&
               of_.supports(turned(p));
    }
    // Forward and back are ranked by the same rules: the first ones are enough.
    size_t tries(const ConvProblem& p) const override {
        constexpr size_t kMostTries = 3;
        return std::min(kMostTries, of_.tries(turned(p)));
    }
    std::unique_ptr<ConvEngine> engine(const ConvProblem& p, size_t rank) override {
        return supports(p) ? made(of_.engine(turned(p), rank)) : nullptr;
    }
    std::unique_ptr<ConvEngine> engine(const ConvProblem& p, const std::string& name) override {
        if (!supports(p) || !name.starts_with(kPrefix)) return nullptr;
        return made(of_.engine(turned(p), name.substr(kPrefix.size())));
    }
    std::unique_ptr<ConvEngine> first(const ConvProblem& p) override { return made(of_.first(turned(p))); }

private:
    // The same number of rows and columns, so that padding is what it was.
    static ConvProblem turned(ConvProblem p) {
        p.pass = ConvPass::forward;
        std::swap(p.shape.in_channels, p.shape.out_channels);
        return p;
    }
    static std::unique_ptr<ConvEngine> made(std::unique_ptr<ConvEngine> forward) {
        return forward == nullptr ? nullptr : std::make_unique<TurnedEngine>(std::move(forward));
    }

    ConvProvider& of_;
};

}  // namespace

std::unique_ptr<ConvProvider> make_turned_provider(ConvProvider& of) { return std::make_unique<TurnedProvider>(of); }

}  // namespace jem
