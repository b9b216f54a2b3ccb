// JEM (Grathwohl et al. 2020): no norm, Adam, chains from noise that nothing clamps, both streams of images augmented and noised.
#include "engine/settings/recipes/recipes.h"

namespace jem {
namespace {

// The authors' train_wrn_ebm.py.
Settings values() {
    Settings s;
    s.norm = NormKind::none;
    s.optimizer = Optimizer::adam;
    s.lr = 1e-4;
    s.weight_decay = 0;
    s.batch_size = 64;
    s.lr_milestones = {160, 180};
    s.lr_decay = 0.3;
    s.gen_augment = Augment::both;
    s.input_noise = 0.03;
    s.input_noise_on = InputNoiseOn::both;
    s.sgld_steps = 20;
    s.sgld_noise = 0.01;
    s.sgld_grad_clamp = 0;
    s.sgld_pixel_clamp = false;
    s.sampling_norm = SamplingNorm::running;
    s.init = StartForm::uniform;
    s.sam = SamForm::none;
    return s;
}

// The chain comes first.
Method method(const Settings& s) {
    Method m;
    if (s.generates()) m.steps = {chain(s), positive_term(s), negative_term(s)};
    add_labelled(m, s);
    return m;
}

}  // namespace

Recipe jem_recipe() { return {.name = "jem", .values = values, .method = method, .rate_of_cifar100 = values().lr}; }

}  // namespace jem
