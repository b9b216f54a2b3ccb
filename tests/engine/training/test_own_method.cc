// Methods of one's own: those of the recipes train as the recipes do, and what does not fit together is refused.
#include "engine/training/own_method.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "engine/settings/recipes/recipes.h"
#include "tests/engine/training/golden.h"
#include "tests/engine/training/job.h"
#include "tests/error_of.h"
#include "tests/thread_ranks.h"

namespace jem {
namespace {

Outcome train_alone(const Settings& s) {
    const auto device = make_cpu_device({.threads = 1});
    return train(*device, lone_rank(), s, {.iterations = 1});
}

// Of each rank.
std::vector<Outcome> train_in_f64(int size, const Settings& s) {
    std::vector<Outcome> outcomes(static_cast<size_t>(size));
    const auto run = [&](Ranks& ranks) {
        const auto device = make_reference_device(DType::f64);
        outcomes[static_cast<size_t>(ranks.rank())] = train(*device, ranks, s, {.iterations = 2});
    };
    if (size == 1)
        run(lone_rank());
    else
        on_ranks(size, run);
    return outcomes;
}

// f64 sums in another order (test_job.cc).
constexpr Tolerance kRounding = {1e-9, 1e-9};

bool finite(const Values& values) {
    return std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
}

// A recipe's settings with its own method in JSON.
Settings as_own(const Settings& s) {
    Settings own = s;
    own.own_method = method_of_json(nlohmann::json::parse(to_json(method_of(s)).dump()));
    const nlohmann::json values = nlohmann::json::parse(to_json(recipe(s.recipe)).dump());
    for (const std::string& key : settings_of_recipes())  // what the steps say
        if (!is_weight(*own.own_method, key)) merge_json(own, {{key, values[key]}});
    return own;
}

TermSpec& term_called(Settings& s, const std::string& name) {
    for (auto& step : s.own_method->steps)
        if (auto* term = std::get_if<TermSpec>(&step); term != nullptr && term->name == name) return *term;
    FAIL("no term " << name);
    throw 0;
}
ChainSpec& chain_called(Settings& s, const std::string& name) {
    for (auto& step : s.own_method->steps)
        if (auto* chain = std::get_if<ChainSpec>(&step); chain != nullptr && chain->name == name) return *chain;
    FAIL("no chain " << name);
    throw 0;
}
void erase(Settings& s, const std::string& name) {
    std::erase_if(s.own_method->steps,
                  [&](const auto& step) { return std::visit([&](const auto& spec) { return spec.name == name; }, step); });
}

}  // namespace

TEST_CASE("a_recipe_s_method_from_a_file_trains_bit_for_bit_as_the_recipe") {
    for (const std::string& name : recipe_names()) {
        INFO(name);
        const Settings s = small_job_of(name), own = as_own(s);
        CHECK_NOTHROW(validate(own));
        CHECK(checked_method(own) == method_of(s));
        const Outcome want = train_alone(s), got = train_alone(own);
        check_equal("weights", got.weights, want.weights);
        check_equal("velocity", got.velocity, want.velocity);
        check_equal("statistics", got.statistics, want.statistics);
        check_equal("buffer", got.buffer, want.buffer);
        check_equal("scalars", got.scalars, want.scalars);
    }
}

TEST_CASE("variants_of_recipes_from_a_file_train_bit_for_bit_as_they_do") {
    std::vector<Settings> variants = {small_job_of("sada-jem"), small_job_of("softmax"), small_job_of("eb-jdat")};
    variants[0].class_conditional = ClassConditional::loss;
    variants[0].p_x_y_weight = variants[1].p_x_y_weight = 0.5;
    variants[1].sgld_steps = 2;  // chains of the labelled images' classes alone
    variants[2].attack_objective = AttackObjective::authors;
    for (const Settings& s : variants) {
        INFO(s.recipe);
        const Outcome want = train_alone(s), got = train_alone(as_own(s));
        check_equal("weights", got.weights, want.weights);
        check_equal("buffer", got.buffer, want.buffer);
        check_equal("scalars", got.scalars, want.scalars);
    }
}

TEST_CASE("given_batches_go_through_a_method_from_a_file_as_through_the_recipe") {
    const auto device = make_reference_device(DType::f64);
    for (const std::string& name : family_case_names()) {
        INFO(name);
        GoldenCase golden = load_golden(name);
        const SafetensorsFile want = run_golden(*device, golden);
        golden.settings = as_own(golden.settings);
        const SafetensorsFile got = run_golden(*device, golden);
        CHECK(got.tensors.size() == want.tensors.size());
        for (const auto& entry : want.tensors) {
            REQUIRE(got.has(entry.first));
            CHECK_MESSAGE(got.at(entry.first).bytes() == entry.second.bytes(), entry.first);
        }
    }
}

TEST_CASE("the_weights_in_a_file_weigh_and_so_do_flags_that_they_name") {
    Settings s = as_own(small_job_of("sada-jem"));
    const Outcome plain = train_alone(s);
    term_called(s, "labelled").objectives[0] = {"cross-entropy", 0.5, ""};
    const Outcome half = train_alone(s);
    CHECK(half.weights != plain.weights);
    Settings by_flag = as_own(small_job_of("sada-jem"));
    by_flag.p_y_given_x_weight = 0.5;
    check_equal("weights", train_alone(by_flag).weights, half.weights);
    Settings none = as_own(small_job_of("sada-jem"));
    none.p_x_weight = 0;
    Settings without = small_job_of("sada-jem");
    without.p_x_weight = 0;
    check_equal("weights", train_alone(none).weights, train_alone(without).weights);
}

TEST_CASE("parts_of_several_recipes_train_together") {
    // Whatever a combination does: it is finite, and with two ranks what it is with one.
    std::vector<Settings> all;
    Settings s = as_own(small_job_of("sada-jem"));  // chains of x+'s labels beside chains of the labelled images' classes
    s.own_method->chains_take_labels = true;
    chain_called(s, "sample").climbs = ChainObjective::class_logit;
    s.own_method->steps.emplace_back(
        ChainSpec{.name = "of classes", .makes = BatchOf::labelled_chain, .climbs = ChainObjective::class_logit});
    s.own_method->steps.emplace_back(
        TermSpec{.name = "their labels", .batch = BatchOf::labelled_chain, .objectives = {{"adversarial-cross-entropy", 0.1, ""}}});
    all.push_back(s);

    s = as_own(small_job_of("eb-jdat"));  // attacks against the energy alone, by binary cross-entropy, on the labelled images
    s.attack_ce_weight = recipe("eb-jdat").attack_ce_weight;
    erase(s, "positive"), erase(s, "sample"), erase(s, "negative");
    s.own_method->steps.insert(s.own_method->steps.begin(),
                               TermSpec{.name = "natural", .batch = BatchOf::labelled, .objectives = {{"binary-energy-real", 1, ""}}});
    term_called(s, "adversarial").objectives = {{"binary-energy-sampled", 1, ""}, {"adversarial-cross-entropy", 1, "attack_ce_weight"}};
    all.push_back(s);

    s = as_own(small_job_of("m-jem"));  // the energy's head on labelled images, and both heads on one batch
    s.energy_l2 = 0.1;
    term_called(s, "positive").batch = BatchOf::labelled;
    s.own_method->steps.emplace_back(
        TermSpec{.name = "second look", .batch = BatchOf::real, .objectives = {{"adversarial-cross-entropy", 0.5, ""}}});
    all.push_back(s);

    for (const Settings& one : all) {
        CHECK_NOTHROW(checked_method(one));
        const Outcome alone = train_in_f64(1, one)[0];
        CHECK(finite(alone.weights));
        CHECK(finite(alone.scalars));
        const std::vector<Outcome> two = train_in_f64(2, one);
        check_same_everywhere(two);
        check_close("weights", two[0].weights, alone.weights, kRounding);
        check_close("scalars", two[0].scalars, alone.scalars, kRounding);
    }
}

TEST_CASE("what_does_not_fit_together_is_refused_with_the_reason_and_a_way_out") {
    struct Case {
        std::string recipe;
        std::vector<std::string> parts;
        std::function<void(Settings&)> change;
    };
    const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
    const std::vector<Case> cases = {
        {"sada-jem", {"no term"}, [](Settings& s) { s.own_method->steps.clear(); }},
        {"sada-jem", {"no term"}, [](Settings& s) { s.own_method->steps = {ChainSpec{.name = "sample"}}; }},
        {"sada-jem", {"All weights", "nothing to train"}, [](Settings& s) { s.p_x_weight = s.p_y_given_x_weight = 0; }},
        {"sada-jem", {"called draw"}, [](Settings& s) { term_called(s, "positive").name = "draw"; }},
        {"sada-jem", {"called store of classes"}, [](Settings& s) { chain_called(s, "sample").name = "store of classes"; }},
        {"sada-jem", {"Two steps", "labelled"}, [](Settings& s) { term_called(s, "positive").name = "labelled"; }},
        {"eb-jdat", {"Two steps", "attack start"}, [](Settings& s) { term_called(s, "labelled").name = "attack start"; }},
        {"sada-jem", {"batch chain", "no chain before it"}, [](Settings& s) { std::swap(s.own_method->steps[1], s.own_method->steps[2]); }},
        {"sada-jem",
         {"batch labelled-chain", "no chain before it"},
         [](Settings& s) { term_called(s, "labelled").batch = BatchOf::labelled_chain; }},
        {"sada-jem",
         {"Two chains make the batch chain"},
         [](Settings& s) { s.own_method->steps.insert(s.own_method->steps.begin(), ChainSpec{.name = "another"}); }},
        {"sada-jem", {"makes the batch real", "drawn from the data"}, [](Settings& s) { chain_called(s, "sample").makes = BatchOf::real; }},
        {"sada-jem", {"for nobody"}, [](Settings& s) { erase(s, "negative"); }},
        {"sada-jem", {"no objectives"}, [](Settings& s) { term_called(s, "labelled").objectives.clear(); }},
        {"sada-jem",
         {"\"low-energy\"", "known: energy-real"},
         [](Settings& s) { term_called(s, "labelled").objectives[0].name = "low-energy"; }},
        {"sada-jem",
         {"weight of", "0 to 1000000"},
         [=](Settings& s) {
             term_called(s, "labelled").objectives[0] = {"cross-entropy", nan, ""};
         }},
        {"sada-jem",
         {"weight of", "0 to 1000000"},
         [=](Settings& s) {
             term_called(s, "labelled").objectives[0] = {"cross-entropy", inf, ""};
         }},
        {"sada-jem",
         {"weight of -1", "0 to 1000000"},
         [](Settings& s) {
             term_called(s, "labelled").objectives[0] = {"cross-entropy", -1, ""};
         }},
        {"sada-jem",
         {"by --iterations"},
         [](Settings& s) { s.iterations = -1, term_called(s, "labelled").objectives[0].setting = "iterations"; }},
        {"sada-jem", {"no such setting"}, [](Settings& s) { term_called(s, "labelled").objectives[0].setting = "no_such"; }},
        {"sada-jem", {"no number"}, [](Settings& s) { term_called(s, "labelled").objectives[0].setting = "split_seed"; }},
        {"sada-jem",
         {"has no labels", "climb"},
         [](Settings& s) {
             term_called(s, "negative").objectives = {{"cross-entropy", 1, ""}};
         }},
        {"jeat", {"has no labels"}, [](Settings& s) { chain_called(s, "attack").climbs = ChainObjective::lse; }},
        {"sada-jem",
         {"there twice"},
         [](Settings& s) {
             term_called(s, "positive").objectives.push_back({"energy-real", 1, "p_x_weight"});
         }},
        {"eb-jdat",
         {"cross-entropy is there twice", "loss_clf"},
         [](Settings& s) {
             term_called(s, "adversarial").objectives.push_back({"cross-entropy", 1, ""});
         }},
        {"sada-jem", {"energy-real stands alone", "energy-sampled"}, [](Settings& s) { erase(s, "sample"), erase(s, "negative"); }},
        {"sada-jem", {"energy-sampled", "no first half", "energy-real"}, [](Settings& s) { erase(s, "positive"); }},
        {"jem", {"energy-sampled", "no first half"}, [](Settings& s) { std::swap(s.own_method->steps[1], s.own_method->steps[2]); }},
        {"dat",
         {"binary-energy-sampled", "no first half"},
         [](Settings& s) { erase(s, "positive"), s.own_method->chains_take_labels = false; }},
        {"sada-jem",
         {"of one term"},
         [](Settings& s) {
             erase(s, "negative"), erase(s, "sample"), term_called(s, "positive").objectives.push_back({"energy-sampled", 1, "p_x_weight"});
         }},
        {"sada-jem",
         {"one weight"},
         [](Settings& s) {
             term_called(s, "negative").objectives[0] = {"energy-sampled", 0.5, ""};
         }},
        {"sada-jem",
         {"one weight"},
         [](Settings& s) {
             term_called(s, "negative").objectives[0] = {"energy-sampled", 0, ""};
         }},
        {"sada-jem",
         {"both would write loss_gen"},
         [](Settings& s) {
             term_called(s, "positive").objectives.push_back({"binary-energy-real", 1, ""});
         }},
        {"eb-jdat",
         {"mean two things by f_pos"},
         [](Settings& s) {
             term_called(s, "positive").objectives.pop_back();
             term_called(s, "labelled").objectives.push_back({"adversarial-energy-real", 1, "attack_weight"});
         }},
        {"sada-jem", {"head linear", "the network has none"}, [](Settings& s) { term_called(s, "positive").head = Head::energy; }},
        {"sada-jem", {"head linear", "the network has none"}, [](Settings& s) { chain_called(s, "sample").head = Head::energy; }},
        {"m-jem", {"head linear", "knows none"}, [](Settings& s) { term_called(s, "labelled").head = Head::energy; }},
        {"m-jem", {"head linear", "knows no classes"}, [](Settings& s) { chain_called(s, "sample").climbs = ChainObjective::class_logit; }},
        {"sada-jem", {"--energy-head linear", "no term"}, [](Settings& s) { s.energy_head = Head::energy; }},
        {"sada-jem", {"stepper attack"}, [](Settings& s) { chain_called(s, "sample").stepper = ChainStepper::attack; }},
        {"eb-jdat", {"stepper sgld", "--attack-eps"}, [](Settings& s) { chain_called(s, "attack").stepper = ChainStepper::sgld; }},
        {"eb-jdat",
         {"stepper normalised", "--attack-eps"},
         [](Settings& s) { chain_called(s, "attack").stepper = ChainStepper::normalised; }},
        {"sada-jem", {"climbs apart"}, [](Settings& s) { chain_called(s, "sample").climbs = ChainObjective::apart; }},
        {"sada-jem", {"chains_take_labels", "no effect"}, [](Settings& s) { s.own_method->chains_take_labels = true; }},
        {"jeat",
         {"chains_take_labels", "nothing to take"},
         [](Settings& s) { s.own_method->chains_take_labels = true, chain_called(s, "sample").climbs = ChainObjective::class_logit; }},
        {"dat", {"--inner-steps 3", "one length"}, [](Settings& s) { s.inner_steps = 3; }},
        {"dat", {"--sgld-noise", "one length"}, [](Settings& s) { s.sgld_noise = 0.1; }},
        {"dat", {"--energy-l2", "no effect"}, [](Settings& s) { s.energy_l2 = 0.1; }},
        {"dat", {"--dropout", "evaluation mode"}, [](Settings& s) { s.dropout = 0.1; }},
        {"dat", {"--labels-per-class 2", "chains_take_labels"}, [](Settings& s) { s.labels_per_class = 2; }},
        {"sada-jem",
         {"--labels-per-class 2", "a term"},
         [](Settings& s) {
             s.labels_per_class = 2, s.init = StartForm::uniform;
             term_called(s, "positive").objectives.push_back({"adversarial-cross-entropy", 1, ""});
         }},
        {"sada-jem", {"--label-smoothing", "no effect"}, [](Settings& s) { erase(s, "labelled"), s.label_smoothing = 0.1; }},
        {"sada-jem", {"--class-conditional has no effect"}, [](Settings& s) { s.class_conditional = ClassConditional::loss; }},
        {"eb-jdat", {"--attack-objective has no effect"}, [](Settings& s) { s.attack_objective = AttackObjective::ce; }},
        {"sada-jem", {"--p-x-y-weight has no effect"}, [](Settings& s) { s.p_x_y_weight = 1; }},
        {"sada-jem", {"--p-y-given-x-weight has no effect"}, [](Settings& s) { s.p_y_given_x_weight = 0.5, erase(s, "labelled"); }},
        // what is left of a method whose other parts weigh nothing is a method, too
        {"dat",
         {"Without what weighs 0", "nothing to take"},
         [](Settings& s) {
             s.p_x_weight = 0;
             term_called(s, "negative").objectives.push_back({"adversarial-cross-entropy", 1, ""});
         }},
    };
    for (const Case& c : cases) {
        Settings s = as_own(small_job_of(c.recipe));
        CHECK_NOTHROW(checked_method(s));
        c.change(s);
        INFO(c.recipe << ", " << c.parts[0]);
        const std::string text = error_of([&] { checked_method(s); });
        check_contains(text, c.parts);
        check_contains(text, {" (", "). "});
        CHECK(error_of([&] { train_alone(s); }) == text);  // whoever makes an iteration is told
    }
}

}  // namespace jem
