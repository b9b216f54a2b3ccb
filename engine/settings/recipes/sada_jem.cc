// SADA-JEM (Yang, Su & Ji 2023, Algorithm 1): p(x) by the energies of real images and of a chain's, p(y|x) by cross-entropy on augmented
// images, all of it by sharpness-aware minimisation.
#include "engine/settings/recipes/recipes.h"

namespace jem {
namespace {

// x+ comes before the chain, which moves the running statistics after it.
Method method(const Settings& s) {
    Method m;
    if (s.samples())
        m.steps = {
            TermSpec{.name = "positive", .objective = "energy-real", .batch = BatchOf::real, .weight = s.p_x_weight, .head = s.energy_head},
            ChainSpec{.name = "sample", .head = s.energy_head},
            TermSpec{
                .name = "negative", .objective = "energy-sampled", .batch = BatchOf::chain, .weight = s.p_x_weight, .head = s.energy_head}};
    if (s.classifies())
        m.steps.push_back(
            TermSpec{.name = "labelled", .objective = "cross-entropy", .batch = BatchOf::labelled, .weight = s.p_y_given_x_weight});
    return m;
}

}  // namespace

// The defaults are the paper's Table 7 and the authors' scripts.
Recipe sada_jem_recipe() {
    return {.name = "sada-jem", .values = [] { return Settings{}; }, .method = method};
}

}  // namespace jem
