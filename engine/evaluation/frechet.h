// The distance of two sets of images by the Gaussians that their features would follow (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).
// Of Inception's features it is the FID.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace jem {

// Mean and covariance of a set's features.
struct FeatureStatistics {
    int64_t count = 0;               // N, of images
    std::vector<double> mean;        // [D]
    std::vector<double> covariance;  // [D, D], symmetric, sums divided by N - 1

    int64_t dimension() const { return static_cast<int64_t>(mean.size()); }
};

/// Statistics in one pass: keeps D x D numbers, whatever N. Sums are in f64 and about the first batch's mean, so that features far from 0
/// lose nothing.
class FeatureAccumulator {
public:
    explicit FeatureAccumulator(int64_t dimension);

    /// A batch, [n, D].
    void add(std::span<const float> features);
    void add(std::span<const double> features);

    int64_t count() const { return count_; }
    /// InputError unless there were two images or more, and every feature finite.
    FeatureStatistics statistics() const;

private:
    template <typename T>
    void add_rows(std::span<const T> features);

    int64_t dimension_, count_ = 0;
    std::vector<double> shift_;    // [D], taken from every feature; empty before the first batch
    std::vector<double> sum_;      // [D]
    std::vector<double> squares_;  // [D, D], sums of products; the lower triangle alone is kept
};

/// F with F F^T = the covariance: what of a distance depends on one set alone, and takes half the time.
struct CovarianceFactor {
    int64_t rank = 0;            // of the covariance, within rounding
    std::vector<double> values;  // [rank, D], F^T: eigenvectors times the roots of their eigenvalues
};
CovarianceFactor covariance_factor(const FeatureStatistics& statistics);

struct FrechetDistance {
    double distance = 0;      // |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), never below 0
    bool few_images = false;  // one of the sets has no more images than features: its covariance is singular, and the distance too large
};
/// tr (C1 C2)^(1/2) is the sum of the roots of the eigenvalues of F^T C2 F, a symmetric matrix without C1's null space: no root of a
/// general matrix, which few images make singular. What rounding leaves below 0 counts as 0. Of a set with itself it is below 1e-12 times
/// its variance. `factor` is the reference's. A set of fewer images than that has ranks is factored in its place. InputError where the two
/// have different numbers of features.
FrechetDistance frechet_distance(const FeatureStatistics& reference, const CovarianceFactor& factor, const FeatureStatistics& samples);
FrechetDistance frechet_distance(const FeatureStatistics& reference, const FeatureStatistics& samples);

}  // namespace jem
