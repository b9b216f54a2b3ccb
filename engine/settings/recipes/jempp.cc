// JEM++ (Yang & Ji 2021): batch norm, SGD, informative starts, and M passes a chain with N steps through the first convolution after each.
#include "engine/settings/recipes/recipes.h"

namespace jem {
namespace {

// The authors' train_jempp.py with M = 10 and N = 5.
Settings values() {
    Settings s;
    s.weight_decay = 4e-4;
    s.epochs = 150;
    s.batch_size = 64;
    s.lr_milestones = {50, 100, 125};
    s.gen_augment = Augment::both;
    s.input_noise = 0.03;
    s.input_noise_on = InputNoiseOn::both;
    s.inner_steps = 5;
    s.sam = SamForm::none;
    return s;
}

}  // namespace

// SADA-JEM is JEM++ with SAM, and without augmenting x+.
Recipe jempp_recipe() { return {.name = "jem++", .values = values, .method = sada_jem_recipe().method}; }

}  // namespace jem
