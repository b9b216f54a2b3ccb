// DAT (2026), its second stage: a classifier trained against adversarial images goes on with binary cross-entropy between the energies of
// real images and of such as climb a class's logit, all norms with the statistics that they came with. With --p-x-weight 0 it is the first
// stage, adversarial training alone. The authors' network is another one (WRN-34-10 with ReLU), and they start negatives from withdrawn
// images; here they start from --init, afresh in every iteration.
#include "engine/settings/recipes/recipes.h"

namespace jem {
namespace {

// The authors' configs for CIFAR-10; lengths in the engine's units, 2 a pixel's range.
Settings values() {
    Settings s;
    s.epochs = 60;  // theirs is stopped by hand
    s.gen_batch_size = 128;
    s.lr = 0.001;
    s.warmup_iterations = 0;
    s.lr_milestones = {};
    s.gen_augment = Augment::both;
    s.ema = 0.999;
    s.sgld_steps = 50;
    s.grow_steps_at = 0.8;
    s.sgld_step_size = 0.2;
    s.sgld_grad_clamp = 0;
    s.sampling_norm = SamplingNorm::running;
    s.init = StartForm::uniform;
    s.reinit_freq = 1;
    s.sam = SamForm::none;
    s.attack_objective = AttackObjective::ce;
    s.attack_norm = AttackNorm::l2;
    s.attack_eps = 127.5;
    s.attack_step_size = 25.5;
    return s;
}

Method method(const Settings& s) {
    refuse_other_energies(s);
    refuse(s, s.energy_l2 != 0, "--energy-l2", "its energies are told apart by cross-entropy");
    refuse(s, s.inner_steps > 0, "--inner-steps", "its chains take steps of one length");
    refuse(s, s.sgld_noise > 0, "--sgld-noise", "its chains take steps of one length");
    refuse(s, s.dropout > 0, "--dropout", "its passes are in evaluation mode, in which nothing is dropped");
    refuse(s, s.generates() && s.labels_per_class > 0, "--labels-per-class", "its chains climb to the labels of the images of p(x)");
    Method m;
    m.running_statistics = s.generates();
    m.nesterov = true;
    m.chains_take_labels = true;
    m.attacks_start_apart = false;
    if (s.generates())
        m.steps = {
            TermSpec{.name = "positive", .batch = BatchOf::real, .objectives = {objective(s, "binary-energy-real", "p_x_weight")}},
            ChainSpec{
                .name = "sample", .makes = BatchOf::chain, .climbs = ChainObjective::class_logit, .stepper = ChainStepper::normalised},
            TermSpec{.name = "negative", .batch = BatchOf::chain, .objectives = {objective(s, "binary-energy-sampled", "p_x_weight")}}};
    if (!s.classifies()) return m;
    ChainSpec attacks = attack(s);
    attacks.evaluation_mode = true;
    m.steps.insert(m.steps.end(), {attacks, TermSpec{.name = "adversarial",
                                                     .batch = BatchOf::adversarial,
                                                     .objectives = {objective(s, "cross-entropy", "p_y_given_x_weight")}}});
    return m;
}

}  // namespace

Recipe dat_recipe() { return {.name = "dat", .values = values, .method = method, .rate_of_cifar100 = 0.01}; }

}  // namespace jem
