// SADA-JEM (Yang, Su & Ji 2023, Algorithm 1): p(x) by the energies of real images and of a chain's, p(y|x) by cross-entropy on augmented
// images, all of it by sharpness-aware minimisation.
#include "engine/settings/recipes/recipes.h"

namespace jem {
namespace {

// x+ comes before the chain, which moves the running statistics after it.
Method method(const Settings& s) {
    Method m;
    if (s.generates()) m.steps = {positive_term(s), chain(s), negative_term(s)};
    add_labelled(m, s);
    return m;
}

}  // namespace

// The defaults are the paper's Table 7 and the authors' scripts.
Recipe sada_jem_recipe() {
    return {.name = "sada-jem", .values = [] { return Settings{}; }, .method = method};
}

}  // namespace jem
