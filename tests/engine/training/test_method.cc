// A method is a list: its phases, scalars and terms are those that the recipe and the settings name.
#include <doctest/doctest.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/settings/recipes/recipes.h"
#include "engine/training/iteration.h"
#include "engine/training/terms/terms.h"
#include "models/networks.h"
#include "tests/check.h"
#include "tests/engine/training/job.h"

namespace jem {
namespace {

// What an iteration on drawn batches is made of.
struct Made {
    std::vector<std::string> phases, scalars;
};
Made made_of(const Settings& s) {
    const auto device = make_reference_device(DType::f64);
    Memory memory(*device);
    WideResNet network(wide_resnet_settings(s));
    ImageSetShape shape = {};
    shape.channels = static_cast<int>(s.in_channels);
    shape.height = shape.width = static_cast<int>(s.image_size);
    shape.num_classes = static_cast<int>(s.num_classes);
    TrainingIteration iteration(*device, memory, network, s,
                                TrainingIteration::DataSource{.shape = shape, .count = 12, .largest_class = 4});
    Made made;
    for (const TrainingIteration::Phase& p : iteration.phases())
        made.phases.push_back(p.name + (p.repeats > 1 ? " x" + std::to_string(p.repeats) : ""));
    made.scalars = iteration.scalars().names();
    return made;
}

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("sada_jem_has_the_phases_of_algorithm_1") {
    const Made made = made_of(small_job_of("sada-jem"));
    CHECK(made.phases == Names{"draw", "positive", "sample x2", "negative", "store", "labelled", "perturb", "second", "update"});
    CHECK(made.scalars == Names{"sgld_grad_norm", "chain_way", "clamped", "f_pos", "f_neg", "loss_gen", "loss_clf", "accuracy"});
}

TEST_CASE("what_the_settings_leave_out_has_no_phase_and_no_scalar") {
    CHECK(made_of(small_job_of("softmax")).phases == Names{"draw", "labelled", "perturb", "update"});
    CHECK(made_of(small_job_of("softmax")).scalars == Names{"loss_clf", "accuracy"});
    CHECK(made_of(small_job_of("softmax+sam")).phases == Names{"draw", "labelled", "perturb", "second", "update"});
    Settings s = small_job_of("sada-jem");
    s.p_y_given_x_weight = 0;
    s.sgld_steps = 0;
    CHECK(made_of(s).phases == Names{"draw", "positive", "negative", "store", "perturb", "second", "update"});
}

TEST_CASE("every_recipe_names_objectives_that_exist") {
    for (const std::string& name : recipe_names()) {
        INFO(name);
        const Method method = method_of(small_job_of(name));
        CHECK_FALSE(method.steps.empty());
        for (const auto& step : method.steps)
            if (const auto* term = std::get_if<TermSpec>(&step))
                for (const ObjectiveSpec& o : term->objectives) CHECK(objective_called(o.name).name == o.name);
    }
    CHECK_THROWS_AS(objective_called("no such term"), std::logic_error);
}

// A method of one's own is checked by what the list says of objectives.
TEST_CASE("what_the_list_says_of_an_objective_is_what_it_does") {
    const auto device = make_reference_device(DType::f64);
    const Settings s = small_job_of("m-jem");  // whose form of squares has a scalar of its own
    for (const NamedObjective& o : objectives()) {
        INFO(o.name);
        Memory memory(*device);
        Scalars scalars;
        const auto made = o.make(
            {.device = *device, .memory = memory, .scalars = scalars, .settings = s, .name = "term", .count = 2, .both = 4, .weight = 1});
        CHECK(scalars.has(o.traits.loss));
        CHECK((o.traits.mean.empty() || scalars.has(o.traits.mean)));
        CHECK((made->value() == std::optional<std::string>(o.traits.loss)) == o.traits.second.empty());
        if (!o.traits.second.empty()) {
            CHECK(objective_called(o.traits.second).traits.loss == o.traits.loss);
            CHECK(objective_called(o.traits.second).traits.labels == o.traits.labels);
        }
        if (!o.traits.heeds.empty()) CHECK_NOTHROW(weight_by(s, o.traits.heeds));
    }
}

TEST_CASE("a_scalar_is_found_by_its_name_and_there_are_only_so_many") {
    Scalars scalars;
    CHECK(scalars.number("a") == 0);
    CHECK(scalars.number("b") == 1);
    CHECK(scalars.number("a") == 0);
    IterationState state;
    state.scalars[1][0] = 5, state.scalars[1][1] = 7;
    CHECK(scalars.value(state, "b") == 5);
    CHECK(scalars.value(state, "b", SamPass::at_perturbed) == 7);
    CHECK(scalars.value(state, "c") == 0);
    for (int i = 2; i < kNumScalars; ++i) scalars.number(std::to_string(i));
    CHECK_THROWS_AS(scalars.number("one too many"), std::logic_error);
}

}  // namespace jem
