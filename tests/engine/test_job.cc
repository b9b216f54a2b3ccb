// Training iterations of several ranks (threads of this process) against one rank's, in f64.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "engine/iteration.h"
#include "models/wide_resnet.h"
#include "tests/check.h"
#include "tests/thread_ranks.h"

namespace jem {
namespace {

// 9 x 9 x 1: an image of 81 values, so that the fours of a noise draw cross the borders of images and of ranks.
constexpr int kSide = 9, kClasses = 3, kIterations = 3;
constexpr int64_t kPixels = int64_t{kSide} * kSide, kImages = 24;

ImageSet images() {
    ImageSet set;
    set.name = "mnist";
    set.channels = 1;
    set.height = set.width = kSide;
    set.num_classes = kClasses;
    TestData data(7);
    for (int64_t i = 0; i < kImages; ++i) {
        set.labels.push_back(static_cast<int32_t>(i % kClasses));
        for (int64_t p = 0; p < kPixels; ++p) set.pixels.push_back(static_cast<uint8_t>(data.index(256)));
    }
    return set;
}

Settings small() {
    Settings s;
    s.depth = 10;
    s.width = 1;
    s.in_channels = 1;
    s.image_size = kSide;
    s.num_classes = kClasses;
    s.batch_size = 8;
    s.gen_batch_size = 4;
    s.lr = 0.05;
    s.sgld_steps = 2;
    s.sgld_noise = 0.02;
    s.input_noise = 0.03;
    s.buffer_size = 10;
    s.reinit_freq = 0.3;
    s.norm_statistics = NormStatistics::job;
    return s;
}

// All that must be the same on every rank.
struct Outcome {
    Values weights, velocity, statistics, buffer, scalars;
};

struct Disturbance {
    int rank = -1;  // whose samples become NaN after the draw of the last iteration
};

Outcome train(Ranks& ranks, const Settings& s, Disturbance disturbance = {}) {
    auto device = make_reference_device(DType::f64);
    device->join(ranks);
    WideResNet network({.depth = s.depth,
                        .width = s.width,
                        .norm = s.norm == Norm::batch ? NormKind::batch : NormKind::none,
                        .norm_batch = s.norm_statistics == NormStatistics::job ? NormBatch::of_job : NormBatch::of_rank,
                        .in_channels = s.in_channels,
                        .image_size = s.image_size,
                        .num_classes = s.num_classes});
    const ImageSet set = images();
    Memory memory(*device, Memory::Sharing::by_lifetime, Memory::Guards::always);
    ImageSetShape shape = {};
    shape.channels = set.channels;
    shape.height = set.height;
    shape.width = set.width;
    shape.num_classes = set.num_classes;
    shape.flip = true;
    TrainingIteration iteration(
        *device, memory, network, s,
        TrainingIteration::DataSource{.shape = shape, .count = set.count(), .largest_class = largest_class_of(set)});
    iteration.plan();
    memory.allocate();
    iteration.images().upload(set);
    iteration.parameters().initialise(1);
    iteration.prepare_weights();
    iteration.record();
    if (s.samples()) {
        iteration.begin(0, 0, 0);
        iteration.buffer().fill(iteration.images().view(), iteration.state(), [](int64_t) {});
    }
    Outcome out;
    for (int64_t i = 0; i < kIterations; ++i) {
        iteration.begin(i, s.lr, i);
        for (const Phase phase : kPhases)
            for (int64_t k = 0; k < iteration.repeats(phase); ++k) {
                iteration.run(phase);
                if (phase == Phase::draw && i + 1 == kIterations && ranks.rank() == disturbance.rank)
                    upload_values(*device, iteration.sampler().samples().slice(0, 1), Values{std::numeric_limits<double>::quiet_NaN()});
            }
        IterationState state;
        iteration.read_state(state);
        device->synchronize();
        for (const double v :
             {state.f_pos[0], state.f_neg[0], state.loss_gen[0], state.loss_clf[0], state.f_pos[1], state.f_neg[1], state.loss_clf[1],
              state.accuracy, state.grad_norm, state.sgld_grad_norm, static_cast<double>(state.diverged)})
            out.scalars.push_back(v);
    }
    Parameters& p = iteration.parameters();
    out.weights = download_values(*device, p.weights());
    out.velocity = download_values(*device, p.velocity());
    out.statistics = download_values(*device, p.statistics());
    if (s.samples()) out.buffer = download_values(*device, iteration.buffer().images());
    memory.check_guards();
    return out;
}

std::vector<Outcome> train_on(int size, const Settings& s, Disturbance disturbance = {}) {
    std::vector<Outcome> outcomes(static_cast<size_t>(size));
    on_ranks(size, [&](Ranks& ranks) { outcomes[static_cast<size_t>(ranks.rank())] = train(ranks, s, disturbance); });
    return outcomes;
}

void check_same_everywhere(const std::vector<Outcome>& outcomes) {
    for (const Outcome& o : outcomes) {
        check_equal("weights of all ranks", o.weights, outcomes[0].weights);
        check_equal("velocity of all ranks", o.velocity, outcomes[0].velocity);
        check_equal("running statistics of all ranks", o.statistics, outcomes[0].statistics);
        check_equal("buffers of all ranks", o.buffer, outcomes[0].buffer);
    }
}

// f64 sums in another order: about 1e-13 of a tensor's rms after three iterations (measured: up to 1e-11 of single values).
constexpr double kRounding = 1e-9;

void check_near(const std::string& what, const Values& got, const Values& want) {
    double squares = 0;
    for (const double v : want) squares += v * v;
    check_close(what, got, want, {kRounding * std::sqrt(squares / std::max<double>(1, static_cast<double>(want.size()))), 0});
}

struct Variant {
    const char* name;
    void (*change)(Settings&);
};

constexpr Variant kVariants[] = {
    {"sada-jem", [](Settings&) {}},
    {"energy L2, no SAM, EMA", [](Settings& s) { s.energy_l2 = 0.1, s.sam = SamForm::none, s.ema = 0.9; }},
    {"no norm, ASAM, energy L2", [](Settings& s) { s.norm = Norm::none, s.sam = SamForm::asam, s.energy_l2 = 0.05, s.lr = 0.01; }},
    {"Adam, softmax", [](Settings& s) { s.optimizer = Optimizer::adam, s.p_x_weight = 0, s.sgld_steps = 0, s.lr = 1e-3; }},
    {"p(x) alone, running statistics while sampling",
     [](Settings& s) { s.p_y_given_x_weight = 0, s.sampling_norm = SamplingNorm::running, s.gen_augment = true; }},
};

}  // namespace

TEST_CASE("several ranks with the whole job's statistics give one rank's result to rounding") {
    for (const Variant& v : kVariants) {
        INFO(std::string(v.name));
        Settings s = small();
        v.change(s);
        const Outcome one = train(lone_rank(), s);
        for (const int size : {2, 4}) {
            INFO("ranks: " << size);
            const std::vector<Outcome> several = train_on(size, s);
            check_same_everywhere(several);
            check_near("weights", several[0].weights, one.weights);
            check_near("velocity", several[0].velocity, one.velocity);
            check_near("running statistics", several[0].statistics, one.statistics);
            check_near("buffer", several[0].buffer, one.buffer);
            for (const Outcome& o : several) check_close("scalars", o.scalars, one.scalars, {kRounding, kRounding});
        }
    }
}

TEST_CASE("a rank's own statistics differ from the whole job's, and all ranks still hold the same") {
    Settings s = small();
    const Outcome one = train(lone_rank(), s);
    s.norm_statistics = NormStatistics::rank;
    check_equal("alone it is the same", train(lone_rank(), s).weights, one.weights);
    const std::vector<Outcome> two = train_on(2, s);
    check_same_everywhere(two);
    CHECK(two[0].weights != one.weights);
    for (const Outcome& o : two) check_equal("scalars of all ranks", o.scalars, two[0].scalars);
}

TEST_CASE("with its own gradient each rank perturbs differently, and all take the same step") {
    Settings s = small();
    const std::vector<Outcome> joint = train_on(2, s);
    s.sam_local = true;
    const std::vector<Outcome> local = train_on(2, s);
    check_same_everywhere(local);
    CHECK(local[0].weights != joint[0].weights);
    for (const Outcome& o : local) check_equal("scalars of all ranks", o.scalars, local[0].scalars);
    check_equal("alone there is but one gradient", train(lone_rank(), s).weights, train(lone_rank(), small()).weights);
}

TEST_CASE("what is not finite on one rank stops all in the same iteration") {
    const Settings s = small();
    const std::vector<Outcome> undisturbed = train_on(2, s);
    const std::vector<Outcome> outcomes = train_on(2, s, {.rank = 1});
    check_same_everywhere(outcomes);
    for (size_t r = 0; r < outcomes.size(); ++r) {
        CHECK(outcomes[r].scalars.back() == 1);
        for (const Values* values : {&outcomes[r].weights, &outcomes[r].buffer, &outcomes[r].statistics})
            for (const double v : *values) REQUIRE(std::isfinite(v));
        CHECK(outcomes[r].weights != undisturbed[r].weights);  // the last step was not made
    }
}

TEST_CASE("a batch that the ranks cannot share evenly is refused, with its flag") {
    const auto refused = [](const char* flag, const Settings& s) {
        on_ranks(2, [&](Ranks& ranks) {
            std::string text;
            try {
                train(ranks, s);
            } catch (const InputError& e) {
                text = e.what();
            }
            CHECK_MESSAGE(text.find(flag) == 0, text);
        });
    };
    Settings s = small();
    s.batch_size = 7;
    refused("--batch-size is 7", s);
    s = small();
    s.gen_batch_size = 5;
    refused("--gen-batch-size is 5", s);
}

}  // namespace jem
