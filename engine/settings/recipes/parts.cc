// What several recipes are made of.
#include "engine/settings/recipes/recipes.h"

namespace jem {

TermSpec positive_term(const Settings& s) {
    return {.name = "positive",
            .batch = BatchOf::real,
            .objectives = {{s.loss_is_of_classes() ? "class-energy-real" : "energy-real", s.p_x_weight}},
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
            .objectives = {{s.loss_is_of_classes() ? "class-energy-sampled" : "energy-sampled", s.p_x_weight}},
            .head = s.energy_head};
}

void add_labelled(Method& m, const Settings& s) {
    TermSpec labelled{.name = "labelled", .batch = BatchOf::labelled, .objectives = {}};
    if (s.classifies()) labelled.objectives.push_back({"cross-entropy", s.p_y_given_x_weight});
    if (s.p_x_y_weight != 0) labelled.objectives.push_back({"joint-energy-labelled", s.p_x_y_weight});
    if (!labelled.objectives.empty()) m.steps.emplace_back(labelled);
    if (s.p_x_y_weight == 0) return;
    m.steps.emplace_back(ChainSpec{.name = "sample of classes", .makes = BatchOf::labelled_chain, .climbs = ChainObjective::class_logit});
    m.steps.emplace_back(TermSpec{
        .name = "negative of classes", .batch = BatchOf::labelled_chain, .objectives = {{"joint-energy-sampled", s.p_x_y_weight}}});
}

}  // namespace jem
