// How well a score tells images of the network's own distribution from strangers: a higher score speaks for its own. "In" is the network's
// own set, "out" the strangers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace jem {

struct Detection {
    double auroc = 0;     // how often an image of its own scores higher than a stranger; equal scores count half
    double aupr_in = 0;   // average precision, its own being what is looked for
    double aupr_out = 0;  // the same of the strangers, by scores negated
    double fpr95 = 0;     // the smallest share of strangers that pass where at least 95 % of its own do
};
/// Average precision is the sum over thresholds of precision times the gain of recall, without interpolation, as scikit-learn has it.
/// O(n log n). InputError where a set is empty or has a NaN among its scores; infinities have their place in the order.
Detection detection(std::span<const double> in, std::span<const double> out);

struct RocPoint {
    double threshold = 0;            // scores from here up pass; infinity: none does
    double false_positive_rate = 0;  // share of `out` that passes
    double true_positive_rate = 0;   // share of `in` that passes
};
/// From (0, 0) to (1, 1), at most `most` points (2 or more): a straight line through three points needs no middle one, and of the others
/// those stay at which a line between kept points would be farthest off (Douglas and Peucker 1973). The errors of detection().
std::vector<RocPoint> roc_curve(std::span<const double> in, std::span<const double> out, int64_t most);

/// Bin b holds [edges[b], edges[b + 1]), the last one its upper edge too.
struct Histogram {
    std::vector<double> edges;      // [bins + 1]
    std::vector<int64_t> counts;    // [bins]
    std::vector<double> densities;  // [bins], of integral 1
};
/// Of each set, with common bins over the range of all of them. Sets of one single value get a range of 1 around it.
/// InputError where a set is empty, or has a score that is not finite.
std::vector<Histogram> histograms(std::span<const std::vector<double>> sets, int bins);
/// With bins over the set's own range. The same errors.
Histogram histogram(std::span<const double> set, int bins);

}  // namespace jem
