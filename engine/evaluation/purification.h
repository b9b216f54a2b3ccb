// A classifier that adds noise to images, or moves them towards where the energy is low, before it looks at them (Grathwohl et al. 2020;
// Hill et al. 2021), and attacks on it.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/evaluation/pgd.h"

namespace jem {

struct Purification {
    int64_t steps = 0;             // of x += dLSE/dx + noise * N(0, I), kept in [-1, 1]
    int64_t chains = 15;           // of an image, whose mean logits an attack sees
    int64_t verdict_chains = 150;  // whose mean logits decide
    double noise = 0.01;
    double start_noise = 0;    // deviation of what is added to each chain's image before its steps; nothing keeps that in [-1, 1]
    bool given_noise = false;  // noise() in place of the generator's, the same whenever images are purified
};

// Attacks through purification: the gradient is that of the cross-entropy of the mean logits over the chains (expectation over
// transformations, EOT), and a chain passes it on to its start as it is (backward pass differentiable approximation, BPDA; Athalye et
// al. 2018). With running statistics, a batch of images at a time.
class PurifiedAttacker {
public:
    PurifiedAttacker(const TrainedNetwork& trained, AttackNorm norm, int64_t batch, const Purification& how);

    int64_t batch() const { return batch_; }
    // Whether each image, [n, H, W, C], is misclassified by the mean logits of many chains. At most batch().
    std::vector<bool> wrong(const std::vector<double>& images, const std::vector<int32_t>& labels);
    // Whether an attack on each image succeeds: the mean logits of many chains are wrong where it ends, or after a step where those of the
    // chains that the attack sees were. As Attacker::breaks, but that draws depend on the place in the batch as well.
    std::vector<bool> breaks(const ImageSet& set, const std::vector<int64_t>& images, const PgdAttack& attack,
                             const Attacker::Done& done = nullptr);

    // Where the attack has brought them, [batch(), H, W, C].
    std::vector<double> images() { return download_values(network_.device(), of_batch(x_)); }
    Array noise() { return chain_.noise(); }    // R [steps, chains, batch, H*W*C]
    Array chains() { return chain_.images(); }  // R [chains, batch, H*W*C]: what was classified last

private:
    Array of_batch(Slot slot) { return {network_.memory().at(slot), network_.device().real_type(), batch_ * pixels_}; }
    Array of_chain(Array all, int64_t chain) const;
    void classify();
    void climb();
    std::vector<double> logits();
    std::vector<bool> verdict(const std::vector<double>& images, const std::vector<int32_t>& labels);

    NetworkInUse network_;
    AttackNorm norm_;
    int64_t batch_, pixels_, classes_;
    Purification how_;
    AttackLimits limits_;
    Scalars scalars_;
    InputChain chain_;  // of all chains of all images, [chains, batch]
    int pass_;
    std::unique_ptr<Stepper> stepper_;
    Slot x_, centre_, gradient_, norms_;
    std::unique_ptr<StepGraph> classify_;
    uint32_t draw_ = 0;
};

}  // namespace jem
