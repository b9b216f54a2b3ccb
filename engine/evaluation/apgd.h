// Attacks without a step size to choose: Auto-PGD (Croce & Hein 2020, Algorithm 1), with the losses and constants of AutoAttack.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/evaluation/evaluation.h"

namespace jem {

enum class ApgdLoss { cross_entropy, dlr, targeted_dlr };

// A loss of one image and its gradient at the logits, [classes]. dlr: the difference of logits ratio, -(z_y - max_{i != y} z_i) /
// (z_1 - z_3) of the sorted logits; targeted: -(z_y - z_target) / (z_1 - (z_3 + z_4) / 2) (Croce & Hein 2020, eq. 6 and 7). It takes 3
// classes, or 4.
struct LossAtLogits {
    double value = 0;
    std::vector<double> gradient;
};
LossAtLogits loss_at_logits(ApgdLoss loss, std::span<const double> logits, int64_t label, int64_t target);

// Whether the first largest of an image's logits is another than the label's.
bool misclassified(std::span<const double> logits, int64_t label);

struct ApgdAttack {
    ApgdLoss loss = ApgdLoss::cross_entropy;
    double radius = 0;  // in units of x
    int64_t steps = 100;
    uint32_t start = 0;  // attacks that differ in it draw other starts
    uint64_t seed = 0;
    std::vector<double> begin = {};  // where it starts, [n, H, W, C]; empty: drawn, as far from the image as the radius lets it
};

struct ApgdResult {
    std::vector<bool> broken;  // misclassified at the start of the attack or after any of its steps
    std::vector<double> loss;  // the largest found
};

class Apgd {
public:
    Apgd(const TrainedNetwork& trained, AttackNorm norm, int64_t batch);

    int64_t batch() const { return batch_; }
    // images: numbers in the set, at most batch(); targets: of each, for the targeted loss. done is told the number of steps made, and may
    // throw. Ends early where every image is broken.
    ApgdResult run(const ImageSet& set, const std::vector<int64_t>& images, const std::vector<int64_t>& targets, const ApgdAttack& attack,
                   const std::function<void(int64_t)>& done = nullptr);

private:
    Array images(Slot slot) { return {network_.memory().at(slot), network_.device().real_type(), batch_ * pixels_}; }
    Array values(Slot slot) { return {network_.memory().at(slot), network_.device().real_type(), batch_}; }
    Tensor x();
    void forward();
    void backward();
    void step(double radius, double share);
    void copy_marked(Slot to, Slot from, const std::vector<int32_t>& marked);

    NetworkInUse network_;
    AttackNorm norm_;
    int64_t batch_, pixels_, classes_;
    Predictor::ImageSize size_;
    int pass_;
    Slot x_, before_, ahead_, gradient_, centre_, best_, best_gradient_, norms_, scales_, marked_;
};

}  // namespace jem
