// EB-JDAT (2025): p(x, x~, y), SADA-JEM with adversarial images that have an energy and a label, too. The weights are those of the authors'
// scripts; the attack is the paper's, the ball's limit included (--attack-objective authors: the scripts').
#include "engine/settings/recipes/recipes.h"

namespace jem {
namespace {

// The script on SADA-JEM, whose default radius turns its SAM to ASAM.
Settings values() {
    Settings s;
    s.lr = 0.01;
    s.lr_milestones = {50, 100, 150};
    s.input_noise = 0.03;
    s.sam = SamForm::asam;
    s.rho = 2;
    s.attack_steps = 5;
    return s;
}

Method method(const Settings& s) {
    refuse_other_energies(s);
    Method m;
    TermSpec positive{.name = "positive", .batch = BatchOf::real, .objectives = {}};
    if (s.generates()) positive.objectives.push_back(objective(s, "energy-real", "p_x_weight"));
    if (s.attack_weight != 0) positive.objectives.push_back(objective(s, "adversarial-energy-real", "attack_weight"));
    if (!positive.objectives.empty()) m.steps.emplace_back(positive);
    if (s.generates()) m.steps.insert(m.steps.end(), {chain(s), negative_term(s)});
    add_labelled(m, s);
    TermSpec adversarial{.name = "adversarial", .batch = BatchOf::adversarial, .objectives = {}};
    if (s.attack_weight != 0) adversarial.objectives.push_back(objective(s, "adversarial-energy", "attack_weight"));
    if (s.attack_ce_weight != 0) adversarial.objectives.push_back(objective(s, "adversarial-cross-entropy", "attack_ce_weight"));
    if (adversarial.objectives.empty()) return m;
    ChainSpec attacks = attack(s);
    attacks.evaluation_mode = true;
    m.steps.insert(m.steps.end(), {attacks, adversarial});
    return m;
}

}  // namespace

Recipe eb_jdat_recipe() { return {.name = "eb-jdat", .values = values, .method = method}; }

}  // namespace jem
