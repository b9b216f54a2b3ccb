// What several recipes are made of.
#include <algorithm>

#include "data/input_error.h"
#include "engine/settings/recipes/recipes.h"

namespace jem {

ObjectiveSpec objective(const Settings& s, const char* name, const char* weight) {
    return {.name = name, .weight = weight_by(s, weight), .setting = weight};
}

TermSpec positive_term(const Settings& s) {
    return {.name = "positive",
            .batch = BatchOf::real,
            .objectives = {objective(s, s.loss_is_of_classes() ? "class-energy-real" : "energy-real", "p_x_weight")},
            .head = s.energy_head};
}

ChainSpec chain(const Settings& s) {
    return {.name = "sample",
            .makes = BatchOf::chain,
            .climbs = s.chains_are_of_classes() ? ChainObjective::class_logit : ChainObjective::lse,
            .head = s.energy_head};
}

TermSpec negative_term(const Settings& s) {
    return {.name = "negative",
            .batch = BatchOf::chain,
            .objectives = {objective(s, s.loss_is_of_classes() ? "class-energy-sampled" : "energy-sampled", "p_x_weight")},
            .head = s.energy_head};
}

void add_labelled(Method& m, const Settings& s) {
    TermSpec labelled{.name = "labelled", .batch = BatchOf::labelled, .objectives = {}};
    if (s.classifies()) labelled.objectives.push_back(objective(s, "cross-entropy", "p_y_given_x_weight"));
    if (s.p_x_y_weight != 0) labelled.objectives.push_back(objective(s, "joint-energy-labelled", "p_x_y_weight"));
    if (!labelled.objectives.empty()) m.steps.emplace_back(labelled);
    if (s.p_x_y_weight == 0) return;
    m.steps.emplace_back(ChainSpec{.name = "sample of classes", .makes = BatchOf::labelled_chain, .climbs = ChainObjective::class_logit});
    m.steps.emplace_back(TermSpec{.name = "negative of classes",
                                  .batch = BatchOf::labelled_chain,
                                  .objectives = {objective(s, "joint-energy-sampled", "p_x_y_weight")}});
}

ChainSpec attack(const Settings& s) {
    const ChainObjective climbs = s.attack_objective == AttackObjective::energy ? ChainObjective::class_energy
                                  : s.attack_objective == AttackObjective::ce   ? ChainObjective::cross_entropy
                                                                                : ChainObjective::apart;
    return {.name = "attack", .makes = BatchOf::adversarial, .climbs = climbs, .stepper = ChainStepper::attack};
}

void refuse(const Settings& s, bool wrong, const char* flag, const char* why) {
    if (wrong) throw InputError(std::string(flag) + " is not of recipe " + s.recipe + " (" + why + "). Leave it out.");
}

void refuse_other_energies(const Settings& s) {
    refuse(s, s.energy_head != Head::classes, "--energy-head linear", "the images of its energy are classified in the same pass");
    refuse(s, s.class_conditional != ClassConditional::off, "--class-conditional",
           "its chains and energies are of no class, or of given ones");
    refuse(s, s.p_x_y_weight != 0, "--p-x-y-weight", "no chains of its labelled images' classes are drawn");
}

bool has_term(const Method& method, BatchOf batch) {
    return std::any_of(method.steps.begin(), method.steps.end(), [batch](const auto& step) {
        const auto* term = std::get_if<TermSpec>(&step);
        return term != nullptr && term->batch == batch;
    });
}

bool has_chain(const Method& method, BatchOf batch) {
    return std::any_of(method.steps.begin(), method.steps.end(), [batch](const auto& step) {
        const auto* chain = std::get_if<ChainSpec>(&step);
        return chain != nullptr && chain->makes == batch;
    });
}

bool draws_labelled(const Method& m) {
    return has_term(m, BatchOf::labelled) || has_chain(m, BatchOf::adversarial) || has_chain(m, BatchOf::labelled_chain);
}

bool draws_classes(const Method& m) {
    return !m.chains_take_labels && std::any_of(m.steps.begin(), m.steps.end(), [](const auto& step) {
        const auto* chain = std::get_if<ChainSpec>(&step);
        return chain != nullptr && chain->makes == BatchOf::chain && chain->climbs != ChainObjective::lse;
    });
}

bool tells_apart(const Method& m) { return has_term(m, BatchOf::real) && has_term(m, BatchOf::chain); }

bool takes_places(const Method& m) { return draws_classes(m) || has_chain(m, BatchOf::labelled_chain); }

bool is_weight(const Method& m, const std::string& key) {
    return std::any_of(m.steps.begin(), m.steps.end(), [&key](const auto& step) {
        const auto* term = std::get_if<TermSpec>(&step);
        return term != nullptr &&
               std::any_of(term->objectives.begin(), term->objectives.end(), [&key](const ObjectiveSpec& o) { return o.setting == key; });
    });
}

bool draws_generative(const Method& m) { return has_term(m, BatchOf::real) || has_chain(m, BatchOf::chain); }

}  // namespace jem
