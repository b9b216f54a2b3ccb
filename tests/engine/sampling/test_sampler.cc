// Chains with a trained network: what they climb, what they leave behind on their way, and that Metropolis leaves its density alone.
#include "engine/sampling/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "engine/network/parameters.h"
#include "engine/network/predictor.h"
#include "models/wide_resnet.h"
#include "tests/check.h"
#include "tests/draws.h"
#include "tests/on_device.h"

namespace jem {
namespace {

constexpr int64_t kChains = 3, kSide = 8, kPixels = kSide * kSide, kClasses = 4;
constexpr uint32_t kNumber = 5;

Settings small_settings() {
    Settings s;
    s.in_channels = 1;
    s.image_size = kSide;
    s.num_classes = kClasses;
    s.sampling_norm = SamplingNorm::running;
    s.sgld_step_size = 0.5;
    s.sgld_noise = 0.05;
    s.sgld_grad_clamp = 0.01;
    s.seed = 77;
    return s;
}

class SamplerOnDevice {
public:
    SamplerOnDevice(const Settings& settings, Sampler::Options options)
        : settings_(settings),
          device_(make_reference_device(DType::f64)),
          network_({.depth = 10, .width = 1, .norm = NormKind::batch, .in_channels = 1, .image_size = kSide, .num_classes = kClasses}),
          memory_(*device_),
          parameters_(*device_, memory_, network_, {}),
          state_(memory_.keep("scalars", "state", sizeof(IterationState))) {
        options.chains = kChains;
        options.starts = Sampler::Starts::given;
        sampler_ = std::make_unique<Sampler>(*device_, network_, memory_, settings_, options, none_);
        predictor_ =
            std::make_unique<Predictor>(*device_, memory_, network_, Predictor::ImageSize{.height = kSide, .width = kSide, .channels = 1},
                                        Predictor::Options{.largest = kChains, .wants = Predictor::Wants::gradients});
        network_.build(*device_, memory_, ConvAlgorithm::direct);
        memory_.plan([&] {
            network_.prepare(parameters_.weights(), parameters_.statistics());
            sampler_->plan(view(), state());
            predictor_->plan(view());
        });
        memory_.allocate();
        parameters_.initialise(3);
        network_.prepare(parameters_.weights(), parameters_.statistics());
        sampler_->ready(view(), state());
    }

    Sampler& sampler() { return *sampler_; }
    Values after(const Values& x) {
        sampler_->begin(kNumber);
        sampler_->start_at(x);
        sampler_->run();
        return sampler_->download();
    }
    struct Said {
        Values lse, gradients, logits;
    };
    Said said(const Values& x) {
        Said out;
        predictor_->run(kChains, predictor_->values(x), view(), [&](const Predictor::Batch& b) {
            out = {download_values(*device_, b.lse), download_values(*device_, b.gradients), download_values(*device_, b.logits)};
        });
        return out;
    }

private:
    NetworkMemory view() {
        return {.weights = parameters_.weights(), .gradient = {}, .statistics = parameters_.statistics(), .state = state()};
    }
    IterationState* state() { return reinterpret_cast<IterationState*>(memory_.at(state_)); }

    const Settings settings_;
    const ImageSet none_;
    std::unique_ptr<Device> device_;
    WideResNet network_;
    Memory memory_;
    Parameters parameters_;
    Slot state_;
    std::unique_ptr<Sampler> sampler_;
    std::unique_ptr<Predictor> predictor_;
};

Values start() { return TestData(6).uniforms(kChains * kPixels, -0.9, 0.9); }

Values part(const Values& values, int64_t number, int64_t size) {
    return {values.begin() + number * size, values.begin() + (number + 1) * size};
}

double normal_draw(uint64_t seed, uint32_t step, size_t value) {
    return expected_normal(random4(seed, RandomStream::sgld_noise, kNumber, step, value / 4), static_cast<int>(value % 4));
}

// The density of a normal draw reflected into [-1, 1], over many places; without its constant.
double log_density(double y, double mean, double sigma) {
    double sum = 0;
    for (int k = -6; k <= 6; ++k)
        for (const double place : {y + 4 * k, 2 - y + 4 * k}) sum += std::exp(-(place - mean) * (place - mean) / (2 * sigma * sigma));
    return std::log(sum);
}

double reflected(double x) {
    while (x < -1 || x > 1) x = x < -1 ? -2 - x : 2 - x;
    return x;
}

}  // namespace

TEST_CASE("frames_and_energies_of_a_chain_are_those_of_shorter_chains") {
    constexpr int64_t kSteps = 5;
    SamplerOnDevice on(small_settings(), {.steps = kSteps, .frame_every = 2, .trace = true});
    const Values end = on.after(start());
    const ChainCourse course = on.sampler().course();
    REQUIRE(course.frame_steps == std::vector<int64_t>{0, 2, 4, 5});
    REQUIRE(course.values.size() == (kSteps + 1) * kChains);
    check_equal("the first frame", part(course.frames, 0, kChains * kPixels), start());
    check_equal("the last frame", part(course.frames, 3, kChains * kPixels), end);
    for (const int64_t steps : {2, 4}) {
        SamplerOnDevice shorter(small_settings(), {.steps = steps});
        check_equal("a frame between", part(course.frames, steps / 2, kChains * kPixels), shorter.after(start()));
    }
    for (size_t f = 0; f < course.frame_steps.size(); ++f) {
        const SamplerOnDevice::Said said = on.said(part(course.frames, static_cast<int64_t>(f), kChains * kPixels));
        check_close("LSE", part(course.values, course.frame_steps[f], kChains), said.lse, {1e-10, 1e-10});
        if (course.frame_steps[f] == kSteps) continue;
        double squares = 0;
        for (const double g : said.gradients) squares += g * g;
        CHECK(course.gradient_norms[static_cast<size_t>(course.frame_steps[f])] ==
              doctest::Approx(std::sqrt(squares / kChains)).epsilon(1e-9));
    }
}

TEST_CASE("a_chain_towards_classes_climbs_each_image_s_own_logit") {
    Settings s = small_settings();
    s.sgld_noise = 0, s.sgld_grad_clamp = 0, s.sgld_step_size = 1e-3;
    SamplerOnDevice on(s, {.steps = 1, .objective = ChainObjective::class_logit, .trace = true});
    const std::vector<int64_t> aims = {2, 0, 3};
    on.sampler().aim_at(aims);
    const Values x = start(), y = on.after(x), course = on.sampler().course().values;
    const auto logits = [&](const Values& at) {
        const Values all = on.said(at).logits;
        Values own;
        for (size_t n = 0; n < kChains; ++n) own.push_back(all[n * kClasses + static_cast<size_t>(aims[n])]);
        return own;
    };
    check_close("f(x)[y] at the start", part(course, 0, kChains), logits(x), {1e-10, 1e-10});
    check_close("f(x)[y] at the end", part(course, 1, kChains), logits(y), {1e-10, 1e-10});
    constexpr double kDifference = 1e-6;
    for (size_t i = 0; i < x.size(); i += 17) {
        Values above = x, below = x;
        above[i] += kDifference, below[i] -= kDifference;
        const size_t n = i / kPixels;
        const double slope = (logits(above)[n] - logits(below)[n]) / (2 * kDifference);
        CHECK((y[i] - x[i]) / s.sgld_step_size == doctest::Approx(slope).epsilon(1e-5));
    }
}

TEST_CASE("known_values_stay_and_the_rest_moves_as_it_would") {
    SamplerOnDevice on(small_settings(), {.steps = 1, .known = true}), free(small_settings(), {.steps = 1});
    const Values x = start(), truth = TestData(8).uniforms(kChains * kPixels, -1, 1), moved = free.after(x);
    std::vector<int32_t> marks;
    Values want;
    for (size_t i = 0; i < x.size(); ++i) {
        marks.push_back(i % 3 == 0 ? 1 : 0);
        want.push_back(i % 3 == 0 ? truth[i] : moved[i]);
    }
    on.sampler().keep_known(truth, marks);
    check_equal("x", on.after(x), want);
}

TEST_CASE("a_metropolis_chain_is_that_of_a_plain_loop") {
    constexpr uint32_t kSteps = 6;
    // A network of random weights is so flat that it takes long steps for some proposals to be refused.
    Settings s = small_settings();
    s.sgld_step_size = 10, s.sgld_noise = 0.1, s.sgld_grad_clamp = 0.02;
    SamplerOnDevice on(s, {.steps = kSteps, .metropolis = true, .frame_every = 1, .trace = true});
    const Values end = on.after(start());
    const ChainCourse course = on.sampler().course();
    Values x = start();
    SamplerOnDevice::Said at = on.said(x);
    const auto drift = [&](double g) { return s.sgld_step_size * std::clamp(g, -s.sgld_grad_clamp, s.sgld_grad_clamp); };
    int64_t taken = 0;
    for (uint32_t k = 1; k <= kSteps; ++k) {
        Values y;
        for (size_t i = 0; i < x.size(); ++i)
            y.push_back(reflected(x[i] + drift(at.gradients[i]) + s.sgld_noise * normal_draw(s.seed, k - 1, i)));
        const SamplerOnDevice::Said there = on.said(y);
        for (size_t n = 0; n < kChains; ++n) {
            double ratio = (there.lse[n] - at.lse[n]) * 2 * s.sgld_step_size / (s.sgld_noise * s.sgld_noise);
            for (size_t i = n * kPixels; i < (n + 1) * kPixels; ++i)
                ratio += log_density(x[i], y[i] + drift(there.gradients[i]), s.sgld_noise) -
                         log_density(y[i], x[i] + drift(at.gradients[i]), s.sgld_noise);
            const double u = expected_uniform(random4(s.seed, RandomStream::metropolis, kNumber, k, n).v[0]);
            const bool take = std::log(u) < ratio;
            CHECK(course.accepted[(k - 1) * kChains + n] == (take ? 1 : 0));
            if (take) std::copy_n(y.begin() + static_cast<int64_t>(n) * kPixels, kPixels, x.begin() + static_cast<int64_t>(n) * kPixels);
            taken += take ? 1 : 0;
        }
        at = on.said(x);
        check_close("x", part(course.frames, k, kChains * kPixels), x, {1e-5, 1e-5});  // kNormalError of each draw
        check_close("LSE", part(course.values, k, kChains), at.lse, {1e-4, 1e-4});
    }
    check_close("the end", end, x, {1e-5, 1e-5});
    CHECK(taken > 0);
    CHECK(taken < kSteps * kChains);
}

TEST_CASE("metropolis_takes_nearly_all_small_steps") {
    Settings s = small_settings();
    s.sgld_noise = 1e-3, s.sgld_step_size = s.sgld_noise * s.sgld_noise / 2;  // temperature 1
    SamplerOnDevice on(s, {.steps = 10, .metropolis = true});
    on.after(start());
    const std::vector<int32_t> accepted = on.sampler().course().accepted;
    CHECK(std::count(accepted.begin(), accepted.end(), 1) >= 29);  // of 30
}

TEST_CASE("metropolis_leaves_the_density_of_one_value_as_it_is") {
    // v(x) = 2 cos(5 x) + x in [-1, 1] at temperature 1: two hills, one of them at an edge.
    constexpr int64_t kMany = 4000, kSteps = 60, kBins = 10;
    const auto v = [](double x) { return 2 * std::cos(5 * x) + x; };
    const auto slope = [](double x) { return 1 - 10 * std::sin(5 * x); };
    const SgldSettings s = {.step_size = 0.08, .noise = 0.4, .grad_clamp = 3, .pixel_clamp = true, .seed = 12};
    SgldSettings proposal = s;
    proposal.pixel_clamp = false;
    const std::unique_ptr<Device> device = make_reference_device(DType::f64);
    OnDevice m(*device);
    const auto applied = [](const Values& x, const auto& f) {
        Values out;
        for (const double one : x) out.push_back(f(one));
        return out;
    };
    Values x = TestData(9).uniforms(kMany, -1, 1);
    IterationState* state = m.state();
    const LangevinPoint at = {m.real(x), m.real(applied(x, slope)), m.real(applied(x, v))},
                        there = {m.real(x), m.real(applied(x, slope)), m.real(applied(x, v))};
    const Array accepted = m.integers(std::vector<int32_t>(kMany, 1));
    for (int64_t k = 0; k < kSteps; ++k) {
        device->copy(there.x.data, at.x.data, at.x.bytes());
        m.ops().sgld_step(there.x, at.gradient, {}, state, proposal);
        m.ops().reflect(there.x);
        m.ops().advance_step(state);
        const Values y = m.read(there.x);
        m.write(there.gradient, applied(y, slope));
        m.write(there.value, applied(y, v));
        m.ops().metropolis(accepted, at, there, state, s);
        m.ops().copy_images(at.x, there.x, accepted);
        m.ops().copy_images(at.gradient, there.gradient, accepted);
        m.ops().copy_images(at.value, there.value, accepted);
    }
    std::vector<double> found(kBins), want(kBins);
    for (const double one : m.read(at.x))
        ++found[static_cast<size_t>(std::min<int64_t>(kBins - 1, static_cast<int64_t>((one + 1) / 2 * kBins)))];
    constexpr int kPoints = 10000;
    double whole = 0;
    for (int i = 0; i < kPoints; ++i) {
        const double place = -1 + (i + 0.5) * 2 / kPoints, density = std::exp(v(place));
        want[static_cast<size_t>(i * kBins / kPoints)] += density;
        whole += density;
    }
    double chi = 0;
    for (size_t b = 0; b < kBins; ++b) {
        const double expected = kMany * want[b] / whole;
        chi += (found[b] - expected) * (found[b] - expected) / expected;
    }
    CHECK(chi < 27.9);  // a chi square of 9 degrees exceeds it once in a thousand
}

}  // namespace jem
