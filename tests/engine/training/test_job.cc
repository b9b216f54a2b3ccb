// Training iterations of several ranks (threads of this process) against one rank's, in f64.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "engine/settings/recipes/recipes.h"
#include "tests/check.h"
#include "tests/engine/training/job.h"
#include "tests/thread_ranks.h"

namespace jem {
namespace {

Outcome train(Ranks& ranks, const Settings& s, const JobOptions& options = {}) {
    return train(*make_reference_device(DType::f64), ranks, s, options);
}

std::vector<Outcome> train_on(int size, const Settings& s, const JobOptions& options = {}) {
    std::vector<Outcome> outcomes(static_cast<size_t>(size));
    on_ranks(size, [&](Ranks& ranks) { outcomes[static_cast<size_t>(ranks.rank())] = train(ranks, s, options); });
    return outcomes;
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
    {"no norm, ASAM, energy L2", [](Settings& s) { s.norm = NormKind::none, s.sam = SamForm::asam, s.energy_l2 = 0.05, s.lr = 0.01; }},
    {"Adam, softmax", [](Settings& s) { s.optimizer = Optimizer::adam, s.p_x_weight = 0, s.sgld_steps = 0, s.lr = 1e-3; }},
    {"layer norm and dropout", [](Settings& s) { s.norm = NormKind::layer, s.dropout = 0.2, s.lr = 0.01; }},
    {"act norm, set by all ranks' images", [](Settings& s) { s.norm = NormKind::act, s.lr = 0.01; }},
    {"p(x) alone, running statistics while sampling",
     [](Settings& s) { s.p_y_given_x_weight = 0, s.sampling_norm = SamplingNorm::running, s.gen_augment = Augment::both; }},
    {"starts from another set's images",
     [](Settings& s) { s.init = StartForm::images, s.init_data = "mnist", s.gen_augment = Augment::both; }},
    {"how well x+ and x- are told apart", [](Settings& s) { s.grow_steps_at = 0.9; }},
    {"few labels", [](Settings& s) { s.labels_per_class = 3, s.init = StartForm::gaussian; }},
};

}  // namespace

TEST_CASE("several ranks with the whole job's statistics give one rank's result to rounding") {
    for (const Variant& v : kVariants) {
        INFO(std::string(v.name));
        Settings s = small_job();
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

TEST_CASE("two ranks give one rank's result to rounding by every recipe") {
    const auto compare = [](const Settings& s) {
        const JobOptions options{.iterations = 2};
        const Outcome one = train(lone_rank(), s, options);
        const std::vector<Outcome> two = train_on(2, s, options);
        check_same_everywhere(two);
        check_near("weights", two[0].weights, one.weights);
        check_near("running statistics", two[0].statistics, one.statistics);
        check_near("buffer", two[0].buffer, one.buffer);
        for (const Outcome& o : two) check_close("scalars", o.scalars, one.scalars, {kRounding, kRounding});
    };
    for (const std::string& name : recipe_names()) {
        INFO(name);
        compare(small_job_of(name));
    }
    Settings joint = small_job_of("jem++");
    joint.p_x_y_weight = 0.5;
    joint.class_conditional = ClassConditional::loss;
    INFO("jem++ of classes");
    compare(joint);
}

TEST_CASE("a rank's own statistics differ from the whole job's, and all ranks still hold the same") {
    Settings s = small_job();
    const Outcome one = train(lone_rank(), s);
    s.norm_statistics = NormStatistics::rank;
    check_equal("alone it is the same", train(lone_rank(), s).weights, one.weights);
    const std::vector<Outcome> two = train_on(2, s);
    check_same_everywhere(two);
    CHECK(two[0].weights != one.weights);
    for (const Outcome& o : two) check_equal("scalars of all ranks", o.scalars, two[0].scalars);
}

TEST_CASE("with its own gradient each rank perturbs differently, and all take the same step") {
    Settings s = small_job();
    const std::vector<Outcome> joint = train_on(2, s);
    s.sam_local = true;
    const std::vector<Outcome> local = train_on(2, s);
    check_same_everywhere(local);
    CHECK(local[0].weights != joint[0].weights);
    for (const Outcome& o : local) check_equal("scalars of all ranks", o.scalars, local[0].scalars);
    check_equal("alone there is but one gradient", train(lone_rank(), s).weights, train(lone_rank(), small_job()).weights);
}

TEST_CASE("what is not finite on one rank stops all in the same iteration") {
    const Settings s = small_job();
    const std::vector<Outcome> undisturbed = train_on(2, s);
    const std::vector<Outcome> outcomes = train_on(2, s, {.disturbed = 1});
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
    Settings s = small_job();
    s.batch_size = 7;
    refused("--batch-size is 7", s);
    s = small_job();
    s.gen_batch_size = 5;
    refused("--gen-batch-size is 5", s);
}

}  // namespace jem
