// M-JEM (Yang, Su & Ji 2023, "M-EBM"): the energy is a head of its own that knows no labels, chains start from one Gaussian of all images,
// and squared energies keep it near 0.
#include "engine/settings/recipes/recipes.h"

namespace jem {
namespace {

// The authors' train_maebm.py and its scripts; their readme gives noise 0.
Settings values() {
    Settings s;
    s.energy_head = Head::energy;
    s.sgld_steps = 5;
    s.sgld_noise = 0.001;
    s.init = StartForm::gaussian;
    s.energy_l2 = 0.5;
    s.energy_l2_form = EnergyL2::m_jem;
    s.sam = SamForm::none;
    return s;
}

}  // namespace

Recipe m_jem_recipe() { return {.name = "m-jem", .values = values, .method = sada_jem_recipe().method}; }

}  // namespace jem
