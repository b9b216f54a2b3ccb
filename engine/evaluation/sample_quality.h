// How good and how varied drawn images are, by what a network says of them and of real ones: scores besides the Frechet distance.
// Features are [N, D] in f32, row by row; sums and distances are in f64, in an order that depends on the number of threads alone.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "kernels/random.h"

namespace jem {

struct Features {
    std::span<const float> values;  // [N, D]
    int64_t dimension = 0;          // D

    int64_t count() const { return dimension > 0 ? static_cast<int64_t>(values.size()) / dimension : 0; }
};

struct MeanAndDeviation {
    double mean = 0, deviation = 0;  // the deviation of the figures themselves: their squares are divided by their number, not one less
};

/// Inception score (Salimans et al. 2016): exp of the mean over images of KL(p(y|x) || mean p(y|x)), over parts of the set: part i holds
/// images N*i/parts up to N*(i+1)/parts. `probabilities`: [N, classes], rows of sum 1. InputError where there are fewer images than parts,
/// or a probability is not finite.
MeanAndDeviation inception_score(std::span<const double> probabilities, int64_t classes, int parts);

/// Share of the work that is done. It may throw, to interrupt.
using ShareDone = std::function<void(double)>;

struct KernelDistanceOptions {
    int subsets = 100;
    int64_t subset_size = 1000;  // or as many as the smaller set has
    uint64_t seed = 0;
    RandomStream stream{};  // of the subsets: order 2s of the reference's images for subset s, 2s + 1 of the samples'
};
/// Kernel Inception distance (Binkowski et al. 2018): the unbiased estimate of the squared maximum mean discrepancy by the kernel
/// (x.y / D + 1)^3, over subsets of both. It may fall below 0. InputError where a set has fewer than two images, a feature is not finite,
/// or the two have different numbers of features.
MeanAndDeviation kernel_distance(const Features& reference, const Features& samples, const KernelDistanceOptions& options,
                                 const ShareDone& progress = nullptr);

struct Coverage {
    double precision = 0, recall = 0;  // Kynkaanniemi et al. 2019, eq. 1 and 2
    double density = 0, coverage = 0;  // Naeem et al. 2020, eq. 4 and 5
};
struct CoverageOptions {
    int64_t precision_neighbours = 3;  // k of precision and recall
    int64_t density_neighbours = 5;    // k of density and coverage
};
/// A ball around each image reaches to its k-th nearest neighbour in its own set, itself not counted, and holds its edge. Precision: the
/// share of samples in some ball of the reference. Recall: the share of the reference in some ball of the samples. Density: balls of the
/// reference that a sample lies in, over k, on average. Coverage: the share of the reference's balls that hold a sample. Of all N x N
/// distances only a block is held at a time. InputError where a set has no more images than the larger k, a feature is not finite, or the
/// two have different numbers of features.
Coverage coverage(const Features& reference, const Features& samples, const CoverageOptions& options, const ShareDone& progress = nullptr);

}  // namespace jem
