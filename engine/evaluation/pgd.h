// Attacks by projected gradient descent (Madry et al. 2018).
#pragma once

#include <cstdint>
#include <vector>

#include "engine/evaluation/evaluation.h"
#include "engine/sampling/input_chain.h"

namespace jem {

// Limits of an attack in units of x, that is of half the pixels' range.
struct PgdAttack {
    AttackLimits limits;
    int64_t steps = 0;
    bool random_start = true;
    uint32_t restart = 0;  // its number: each draws starts of its own
    uint64_t seed = 0;
};

// Climbs the cross-entropy of a network with running statistics, a batch of images at a time.
class Attacker {
public:
    Attacker(const TrainedNetwork& trained, AttackNorm norm, int64_t batch);

    int64_t batch() const { return batch_; }
    // Whether each image is misclassified at the start of the attack or after any of its steps. images: their numbers in the set, any
    // number of them; draws depend on these alone, so that an image's attack does not depend on which others are attacked with it.
    // done is told the number of steps made, on average, and may throw.
    using Done = std::function<void(int64_t steps)>;
    std::vector<bool> breaks(const ImageSet& set, const std::vector<int64_t>& images, const PgdAttack& attack, const Done& done = nullptr);

    // Where the attack has brought the last batch(), [batch(), H, W, C].
    std::vector<double> images() { return download_values(network_.device(), chain_.images()); }

private:
    void load(const ImageSet& set, const std::vector<int64_t>& numbers, const std::vector<int64_t>& places, const PgdAttack& attack);

    NetworkInUse network_;
    AttackNorm norm_;
    int64_t batch_;
    AttackLimits limits_;
    InputChain chain_;
};

}  // namespace jem
