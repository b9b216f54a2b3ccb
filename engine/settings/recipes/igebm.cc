// IGEBM (Du & Mordatch 2019): the energy of an image and a class alone, by samples of long noisy chains whose ends a buffer collects. No
// cross-entropy: p(y|x) is what the energies make of it.
#include "engine/settings/recipes/recipes.h"

namespace jem {
namespace {

// The authors' flags for conditional CIFAR-10, and defaults; lengths in the engine's units, 2 a pixel's range.
Settings values() {
    Settings s;
    s.network = NetworkKind::igebm;
    s.depth = 14;
    s.width = 8;
    s.norm = NormKind::none;
    s.spectral_norm = true;
    s.gen_batch_size = 128;
    s.optimizer = Optimizer::adam;
    s.lr = 3e-4;
    s.adam_beta1 = 0;
    s.adam_clamp = 3;
    s.weight_decay = 0;
    s.warmup_iterations = 0;
    s.lr_milestones = {};
    s.sgld_steps = 60;
    s.sgld_step_size = 40;
    s.sgld_noise = 0.01;
    s.sgld_noise_first = true;
    s.sgld_grad_clamp = 0.005;
    s.init = StartForm::uniform;
    s.buffer_order = BufferOrder::fifo;
    s.sam = SamForm::none;
    s.p_y_given_x_weight = 0;
    s.energy_l2 = 1;
    s.energy_l2_form = EnergyL2::image;
    s.class_conditional = ClassConditional::loss;
    return s;
}

// x- has the classes of x+: the buffer knows none, so that an image may go on as another class.
Method method(const Settings& s) {
    Method m = sada_jem_recipe().method(s);
    m.chains_take_labels = s.generates() && s.chains_are_of_classes();
    refuse(s, m.chains_take_labels && s.labels_per_class > 0, "--labels-per-class", "its chains climb to the labels of the images of p(x)");
    return m;
}

}  // namespace

Recipe igebm_recipe() { return {.name = "igebm", .values = values, .method = method, .rate_of_cifar100 = values().lr}; }

}  // namespace jem
