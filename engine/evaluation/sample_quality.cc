#include "engine/evaluation/sample_quality.h"

#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <vector>

#include "data/input_error.h"

namespace jem {
namespace {

using Matrix = Eigen::MatrixXd;  // an image a column
using Vector = Eigen::VectorXd;

constexpr Eigen::Index kBlock = 1000;  // images of a block: 16 MB of 2,048 features, 8 MB of distances

MeanAndDeviation mean_and_deviation(const std::vector<double>& figures) {
    const auto n = static_cast<double>(figures.size());
    MeanAndDeviation result;
    for (const double f : figures) result.mean += f / n;
    for (const double f : figures) result.deviation += (f - result.mean) * (f - result.mean) / n;
    result.deviation = std::sqrt(result.deviation);
    return result;
}

void check_features(const Features& features, const char* what, int64_t least) {
    if (features.count() < least)
        throw InputError(
            fmt::format("cannot compare features ({} {}, at least {} are needed). Give more images.", features.count(), what, least));
    const auto bad = std::find_if(features.values.begin(), features.values.end(), [](float v) { return !std::isfinite(v); });
    if (bad != features.values.end())
        throw InputError(
            fmt::format("cannot compare features (number {} of the {} has one that is not finite). The network has diverged, or its "
                        "input is damaged: check both.",
                        (bad - features.values.begin()) / features.dimension, what));
}

void check_both(const Features& reference, const Features& samples, int64_t least) {
    if (reference.dimension != samples.dimension)
        throw InputError(fmt::format("cannot compare features ({} of the reference, {} of the samples). Take both from one network.",
                                     reference.dimension, samples.dimension));
    check_features(reference, "reference images", least);
    check_features(samples, "samples", least);
}

Eigen::Map<const Eigen::MatrixXf> matrix(const Features& features) {
    return {features.values.data(), features.dimension, features.count()};
}

// The first `size` images of a random order.
Matrix subset(const Features& features, int64_t size, const KernelDistanceOptions& options, uint32_t order) {
    const auto all = matrix(features);
    const auto count = static_cast<uint32_t>(features.count());
    Matrix chosen(features.dimension, size);
    for (int64_t i = 0; i < size; ++i)
        chosen.col(i) = all.col(shuffled(static_cast<uint32_t>(i), count, options.seed, options.stream, order)).cast<double>();
    return chosen;
}

Eigen::ArrayXXd kernel(const Matrix& x, const Matrix& y) {
    return ((x.transpose() * y).array() / static_cast<double>(x.rows()) + 1).cube();
}

double mean_of_pairs(const Matrix& x) {
    const auto k = kernel(x, x);
    const auto n = static_cast<double>(x.cols());
    return (k.sum() - k.matrix().trace()) / (n * (n - 1));
}

// Features of a set about a common centre: distances lose nothing to what all images share.
struct Points {
    const Features& features;
    const Vector& centre;
    Vector squares;  // |x|^2 of each

    Points(const Features& f, const Vector& c) : features(f), centre(c), squares(f.count()) {
        for (Eigen::Index first = 0; first < f.count(); first += kBlock) {
            const Matrix x = block(first);
            squares.segment(first, x.cols()) = x.colwise().squaredNorm();
        }
    }
    Eigen::Index count() const { return squares.size(); }
    Matrix block(Eigen::Index first) const {
        return matrix(features).middleCols(first, std::min(kBlock, features.count() - first)).cast<double>().colwise() - centre;
    }
};

// Visits squared distances block by block, [images of a, images of b]. Of one set and itself, blocks on and above the diagonal alone.
class Distances {
public:
    explicit Distances(const ShareDone& progress, double blocks) : progress_(progress), blocks_(blocks) {}

    template <typename Visit>
    void visit(const Points& a, const Points& b, const Visit& visit) {
        for (Eigen::Index i = 0; i < a.count(); i += kBlock) {
            const Matrix x = a.block(i);
            for (Eigen::Index j = &a == &b ? i : 0; j < b.count(); j += kBlock) {
                const Matrix y = b.block(j);
                Matrix d = -2 * (x.transpose() * y);
                // rounding must not part images that are the same
                constexpr double kSame = 1e-12;
#pragma omp parallel for schedule(static)
                for (Eigen::Index column = 0; column < d.cols(); ++column)
                    for (Eigen::Index row = 0; row < d.rows(); ++row) {
                        const double scale = a.squares[i + row] + b.squares[j + column];
                        const double squared = d(row, column) + scale;
                        d(row, column) = squared > kSame * scale ? squared : 0;
                    }
                visit(d, i, j);
                if (progress_) progress_(std::min(1.0, ++done_ / blocks_));
            }
        }
    }

private:
    const ShareDone& progress_;
    double blocks_, done_ = 0;
};

// Puts a value where it belongs among the k smallest so far, ascending.
void keep_smallest(double* smallest, int64_t k, double value) {
    if (value >= smallest[k - 1]) return;
    int64_t at = k - 1;
    for (; at > 0 && smallest[at - 1] > value; --at) smallest[at] = smallest[at - 1];
    smallest[at] = value;
}

// Squared distances to the k nearest others of the same set, [k, N], ascending.
Matrix nearest(const Points& points, int64_t k, Distances& distances) {
    Matrix smallest = Matrix::Constant(k, points.count(), std::numeric_limits<double>::infinity());
    distances.visit(points, points, [&](const Matrix& d, Eigen::Index i, Eigen::Index j) {
#pragma omp parallel for schedule(static)
        for (Eigen::Index column = 0; column < d.cols(); ++column)
            for (Eigen::Index row = 0; row < d.rows(); ++row)
                if (i + row != j + column) keep_smallest(smallest.col(j + column).data(), k, d(row, column));
        if (i == j) return;  // each pair of the diagonal's block was seen from both sides
#pragma omp parallel for schedule(static)
        for (Eigen::Index row = 0; row < d.rows(); ++row)
            for (Eigen::Index column = 0; column < d.cols(); ++column) keep_smallest(smallest.col(i + row).data(), k, d(row, column));
    });
    return smallest;
}

double blocks_of(const Features& f) { return std::ceil(static_cast<double>(f.count()) / kBlock); }

double share(const std::vector<char>& hits) {
    return static_cast<double>(std::count(hits.begin(), hits.end(), 1)) / static_cast<double>(hits.size());
}

}  // namespace

MeanAndDeviation inception_score(std::span<const double> probabilities, int64_t classes, int parts) {
    assert(classes > 0 && parts > 0);
    const int64_t count = static_cast<int64_t>(probabilities.size()) / classes;
    if (count < parts)
        throw InputError(
            fmt::format("cannot compute an Inception score ({} images in {} parts). Give at least one image a part.", count, parts));
    for (const double p : probabilities)
        if (!std::isfinite(p))
            throw InputError(
                "cannot compute an Inception score (a probability is not finite). Check the network's weights and the images.");
    std::vector<double> scores;
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t first = count * part / parts, end = count * (part + 1) / parts;
        const auto images = static_cast<double>(end - first);
        std::vector<double> mean(static_cast<size_t>(classes));
        for (int64_t n = first; n < end; ++n)
            for (int64_t y = 0; y < classes; ++y)
                mean[static_cast<size_t>(y)] += probabilities[static_cast<size_t>(n * classes + y)] / images;
        double divergence = 0;
        for (int64_t n = first; n < end; ++n)
            for (int64_t y = 0; y < classes; ++y) {
                const double p = probabilities[static_cast<size_t>(n * classes + y)];
                if (p > 0) divergence += p * std::log(p / mean[static_cast<size_t>(y)]);
            }
        scores.push_back(std::exp(divergence / images));
    }
    return mean_and_deviation(scores);
}

MeanAndDeviation kernel_distance(const Features& reference, const Features& samples, const KernelDistanceOptions& options,
                                 const ShareDone& progress) {
    assert(options.subsets > 0 && options.subset_size >= 2);
    check_both(reference, samples, 2);
    const int64_t size = std::min({options.subset_size, reference.count(), samples.count()});
    std::vector<double> figures;
    for (int s = 0; s < options.subsets; ++s) {
        const auto order = static_cast<uint32_t>(2 * s);
        const Matrix x = subset(reference, size, options, order), y = subset(samples, size, options, order + 1);
        figures.push_back(mean_of_pairs(x) + mean_of_pairs(y) - 2 * kernel(x, y).mean());
        if (progress) progress(static_cast<double>(s + 1) / options.subsets);
    }
    return mean_and_deviation(figures);
}

Coverage coverage(const Features& reference, const Features& samples, const CoverageOptions& options, const ShareDone& progress) {
    const int64_t k = options.precision_neighbours, k_density = options.density_neighbours, most = std::max(k, k_density);
    assert(k > 0 && k_density > 0);
    check_both(reference, samples, most + 1);
    const Vector centre = matrix(reference).cast<double>().rowwise().mean();
    const Points real(reference, centre), drawn(samples, centre);

    const double r = blocks_of(reference), f = blocks_of(samples);
    Distances distances(progress, r * (r + 1) / 2 + f * (f + 1) / 2 + r * f);
    const Matrix real_radii = nearest(real, most, distances), drawn_radii = nearest(drawn, most, distances);

    std::vector<char> precise(static_cast<size_t>(drawn.count())), recalled(static_cast<size_t>(real.count())), covered(recalled.size());
    std::vector<int64_t> balls(precise.size());
    distances.visit(real, drawn, [&](const Matrix& d, Eigen::Index i, Eigen::Index j) {
#pragma omp parallel for schedule(static)
        for (Eigen::Index column = 0; column < d.cols(); ++column) {
            const auto image = static_cast<size_t>(j + column);
            for (Eigen::Index row = 0; row < d.rows(); ++row) {
                if (d(row, column) <= real_radii(k - 1, i + row)) precise[image] = 1;
                if (d(row, column) <= real_radii(k_density - 1, i + row)) ++balls[image];
            }
        }
#pragma omp parallel for schedule(static)
        for (Eigen::Index row = 0; row < d.rows(); ++row) {
            const auto image = static_cast<size_t>(i + row);
            for (Eigen::Index column = 0; column < d.cols(); ++column) {
                if (d(row, column) <= drawn_radii(k - 1, j + column)) recalled[image] = 1;
                if (d(row, column) <= real_radii(k_density - 1, i + row)) covered[image] = 1;
            }
        }
    });
    int64_t all_balls = 0;
    for (const int64_t b : balls) all_balls += b;
    return {.precision = share(precise),
            .recall = share(recalled),
            .density = static_cast<double>(all_balls) / static_cast<double>(k_density * drawn.count()),
            .coverage = share(covered)};
}

}  // namespace jem
