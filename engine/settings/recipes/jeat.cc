// JEAT (Zhu et al. 2021): JEM on adversarial images, in place of real ones. No code of the authors is known, and of the paper the abstract
// alone was at hand: the objective is second-hand, and its sizes are this project's.
#include "engine/settings/recipes/recipes.h"

namespace jem {
namespace {

// SADA-JEM's without SAM.
Settings values() {
    Settings s;
    s.sam = SamForm::none;
    return s;
}

// x~ is made in the chain's mode, before it.
Method method(const Settings& s) {
    refuse_other_energies(s);
    refuse(s, s.generates() && s.labels_per_class > 0, "--labels-per-class",
           "its p(x) is of attacked images, which all have labels: others would be left out");
    Method m;
    TermSpec term{.name = "adversarial", .batch = BatchOf::adversarial, .objectives = {}};
    if (s.generates()) term.objectives.push_back(objective(s, "energy-real", "p_x_weight"));
    if (s.classifies()) term.objectives.push_back(objective(s, "cross-entropy", "p_y_given_x_weight"));
    m.steps = {attack(s), term};
    if (s.generates()) m.steps.insert(m.steps.end(), {chain(s), negative_term(s)});
    return m;
}

}  // namespace

Recipe jeat_recipe() { return {.name = "jeat", .values = values, .method = method}; }

}  // namespace jem
