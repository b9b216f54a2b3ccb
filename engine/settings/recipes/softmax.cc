// The same classifier without p(x), plain or by sharpness-aware minimisation: what the paper compares with. Weights other than 0 add
// SADA-JEM's terms.
#include "engine/settings/recipes/recipes.h"

namespace jem {
namespace {

Settings values() {
    Settings s;
    s.p_x_weight = 0;
    s.sgld_steps = 0;
    s.sam = SamForm::none;
    s.input_noise_on = InputNoiseOn::both;
    return s;
}

Settings values_with_sam() {
    Settings s = values();
    s.sam = SamForm::sam;
    return s;
}

}  // namespace

Recipe softmax_recipe() { return {.name = "softmax", .values = values, .method = sada_jem_recipe().method}; }
Recipe softmax_sam_recipe() { return {.name = "softmax+sam", .values = values_with_sam, .method = sada_jem_recipe().method}; }

}  // namespace jem
