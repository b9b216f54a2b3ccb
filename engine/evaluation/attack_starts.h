// Where attacks on images begin.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/image_set.h"
#include "engine/evaluation/evaluation.h"

namespace jem {

// The images of these numbers, [n, H, W, C] in [-1, 1].
std::vector<double> pixels_of(const ImageSet& set, std::span<const int64_t> numbers);

struct AttackBatch {
    std::vector<int64_t> numbers;
    std::vector<int32_t> labels;
    std::vector<double> centres;  // [n, H, W, C] in [-1, 1]
};
// So many images: those of these numbers, of which there are no more; the first ones again fill it up.
AttackBatch full_batch(const ImageSet& set, const std::vector<int64_t>& numbers, int64_t count);

struct AttackStart {
    AttackNorm norm = AttackNorm::linf;
    double radius = 0;  // in units of x
    // ball: uniform in it with linf; a random direction, radius * U(0, 1) away, with l2. edge: as far as the radius lets it.
    enum class Within { ball, edge } within = Within::ball;
    uint64_t seed = 0;
    uint32_t number = 0;  // draws of one seed that differ in it are others
};
// Around the images, in [-1, 1]. An image's start depends on its number in the set, not on which others are there.
std::vector<double> attack_starts(const std::vector<double>& images, const std::vector<int64_t>& numbers, const AttackStart& start);

}  // namespace jem
