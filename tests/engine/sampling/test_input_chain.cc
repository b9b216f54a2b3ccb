// Chains on the input: each climbs its own objective by its own step, from a start that a projection remembers, over one implementation.
#include "engine/sampling/input_chain.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "engine/network/parameters.h"
#include "engine/network/predictor.h"
#include "models/wide_resnet.h"
#include "tests/check.h"

namespace jem {

// tests/engine/sampling/example_stepper.cc
std::unique_ptr<Stepper> leashed_stepper(const SgldSettings& settings, double radius);

namespace {

constexpr int64_t kImages = 3, kSide = 8, kPixels = kSide * kSide, kClasses = 4;

class ChainOnDevice {
public:
    ChainOnDevice(ChainObjective objective, std::unique_ptr<Stepper> stepper)
        : device_(make_reference_device(DType::f64)),
          network_({.depth = 10, .width = 1, .norm = NormKind::batch, .in_channels = 1, .image_size = kSide, .num_classes = kClasses}),
          memory_(*device_),
          parameters_(*device_, memory_, network_, {}),
          chain_(*device_, network_, memory_,
                 {.name = "chain",
                  .count = kImages,
                  .height = kSide,
                  .width = kSide,
                  .channels = 1,
                  .objective = objective,
                  .norm = NormMode::running},
                 std::move(stepper)),
          predictor_(*device_, memory_, network_, {.height = kSide, .width = kSide, .channels = 1},
                     {.largest = kImages, .wants = Predictor::Wants::gradients}),
          state_(memory_.keep("scalars", "state", sizeof(IterationState))) {
        network_.build(*device_, memory_, ConvAlgorithm::direct);
        memory_.plan([&] {
            network_.prepare(parameters_.weights(), parameters_.statistics());
            chain_.begin();
            chain_.step(view(), state());
            predictor_.plan(view());
        });
        memory_.allocate();
        parameters_.initialise(3);
        network_.prepare(parameters_.weights(), parameters_.statistics());
    }

    InputChain& chain() { return chain_; }
    Device& device() { return *device_; }
    IterationState* state() { return reinterpret_cast<IterationState*>(memory_.at(state_)); }
    IterationState read_state() {
        IterationState s;
        device_->download(&s, state(), sizeof s);
        return s;
    }
    // Where the chain is after so many steps from x, recorded once and replayed.
    Values after(const Values& x, int64_t steps) {
        upload_values(*device_, chain_.images(), x);
        device_->ops().begin_iteration(state(), 0, 0, 1, 1);
        chain_.begin();
        const auto step = capture(*device_, [&] { chain_.step(view(), state()); });
        for (int64_t k = 0; k < steps; ++k) step->replay();
        device_->synchronize();
        return download_values(*device_, chain_.images());
    }
    Predictions predictions(const Values& x) { return predictor_.predict(kImages, predictor_.values(x), view()); }
    Values lse_gradient(const Values& x) {
        Values g;
        predictor_.run(kImages, predictor_.values(x), view(),
                       [&](const Predictor::Batch& b) { g = download_values(*device_, b.gradients); });
        return g;
    }
    double cross_entropy(const Values& x, const std::vector<int32_t>& labels) {
        const Predictions p = predictions(x);
        double sum = 0;
        for (size_t n = 0; n < labels.size(); ++n) sum += p.lse[n] - p.logits[n * kClasses + static_cast<size_t>(labels[n])];
        return sum;
    }

private:
    NetworkMemory view() {
        return {.weights = parameters_.weights(), .gradient = {}, .statistics = parameters_.statistics(), .state = state()};
    }

    std::unique_ptr<Device> device_;
    WideResNet network_;
    Memory memory_;
    Parameters parameters_;
    InputChain chain_;
    Predictor predictor_;
    Slot state_;
};

Values start() { return TestData(6).uniforms(kImages * kPixels, -0.9, 0.9); }

}  // namespace

TEST_CASE("a_sampling_chain_follows_the_gradient_of_the_lse_and_tells_its_norm") {
    Scalars scalars;
    const int norm = scalars.number("norm");
    ChainOnDevice on(ChainObjective::lse,
                     sgld_stepper({.step_size = 0.5, .noise = 0, .grad_clamp = 0.01, .pixel_clamp = true}, scalars, "norm"));
    Values want = start(), g;
    for (int k = 0; k < 3; ++k) {
        g = on.lse_gradient(want);
        for (size_t i = 0; i < want.size(); ++i) want[i] = std::clamp(want[i] + 0.5 * std::clamp(g[i], -0.01, 0.01), -1.0, 1.0);
    }
    check_close("x", on.after(start(), 3), want, {1e-12, 1e-12});
    double squares = 0;
    for (const double v : g) squares += v * v;
    CHECK(on.read_state().scalars[norm][0] == doctest::Approx(std::sqrt(squares / kImages)).epsilon(1e-10));
    CHECK(on.read_state().step == 3);
}

TEST_CASE("an_attack_climbs_the_labels_cross_entropy_within_its_radius") {
    constexpr double kStep = 0.02, kRadius = 0.05;
    const AttackLimits limits = {.step_size = kStep, .radius = kRadius};
    ChainOnDevice on(ChainObjective::cross_entropy, sign_stepper(limits));
    const std::vector<int32_t> labels = {0, 3, 1};
    on.device().upload(on.chain().labels().data, labels.data(), labels.size() * sizeof(int32_t));
    const Values x = start();
    double before = on.cross_entropy(x, labels);
    for (const int64_t steps : {1, 2, 6}) {
        const Values y = on.after(x, steps);
        CAPTURE(steps);
        const double farthest = std::min(static_cast<double>(steps) * kStep, kRadius);
        for (size_t i = 0; i < x.size(); ++i) {
            CHECK(std::fabs(y[i] - x[i]) <= farthest + 1e-15);
            CHECK(std::fabs(y[i]) <= 1);
        }
        CHECK(on.cross_entropy(y, labels) > before);
        before = on.cross_entropy(y, labels);
    }
}

TEST_CASE("the_first_step_of_an_attack_goes_by_the_sign_of_the_gradient") {
    // Central differences of the cross-entropy; pixels whose derivative is nearly 0 are left out.
    constexpr double kStep = 0.02, kDifference = 1e-6, kNearlyZero = 1e-6;
    const AttackLimits limits = {.step_size = kStep, .radius = 1};
    ChainOnDevice on(ChainObjective::cross_entropy, sign_stepper(limits));
    const std::vector<int32_t> labels = {2, 0, 1};
    on.device().upload(on.chain().labels().data, labels.data(), labels.size() * sizeof(int32_t));
    const Values x = start(), y = on.after(x, 1);
    int64_t seen = 0;
    for (size_t i = 0; i < x.size(); i += 7) {
        Values above = x, below = x;
        above[i] += kDifference;
        below[i] -= kDifference;
        const double slope = (on.cross_entropy(above, labels) - on.cross_entropy(below, labels)) / (2 * kDifference);
        if (std::fabs(slope) < kNearlyZero) continue;
        ++seen;
        CHECK(y[i] == doctest::Approx(x[i] + (slope > 0 ? kStep : -kStep)).epsilon(1e-12));
    }
    CHECK(seen > 20);
}

TEST_CASE("a_stepper_of_its_own_file_moves_a_chain_that_keeps_what_it_asks_for") {
    constexpr double kRadius = 0.002;
    const SgldSettings settings{.step_size = 0.5, .noise = 0, .grad_clamp = 0.01, .pixel_clamp = true};
    ChainOnDevice on(ChainObjective::lse, leashed_stepper(settings, kRadius));
    const Values x = start(), g = on.lse_gradient(x), got = on.after(x, 1);
    for (int64_t n = 0; n < kImages; ++n) {
        double squares = 0;
        for (int64_t p = 0; p < kPixels; ++p)
            squares += std::pow(0.5 * std::clamp(g[static_cast<size_t>(n * kPixels + p)], -0.01, 0.01), 2);
        const double shrunk = std::min(1.0, kRadius / std::sqrt(squares));
        CHECK(shrunk < 1);  // the leash is felt
        for (int64_t p = 0; p < kPixels; ++p) {
            const auto i = static_cast<size_t>(n * kPixels + p);
            CHECK(got[i] == doctest::Approx(x[i] + shrunk * 0.5 * std::clamp(g[i], -0.01, 0.01)).epsilon(1e-12));
        }
    }
    const Values far = on.after(x, 20);
    for (int64_t n = 0; n < kImages; ++n) {
        double squares = 0;
        for (auto i = static_cast<size_t>(n * kPixels); i < static_cast<size_t>((n + 1) * kPixels); ++i)
            squares += std::pow(far[i] - x[i], 2);
        CHECK(std::sqrt(squares) == doctest::Approx(kRadius).epsilon(1e-9));
    }
}

}  // namespace jem
