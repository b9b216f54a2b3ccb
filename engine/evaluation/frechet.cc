#include "engine/evaluation/frechet.h"

#include <fmt/format.h>

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

#include "data/input_error.h"

namespace jem {
namespace {

using Matrix = Eigen::MatrixXd;  // by columns: [D, N] of Eigen is [N, D] of ours
using Vector = Eigen::VectorXd;

Eigen::Map<const Matrix> matrix(const std::vector<double>& values, int64_t rows, int64_t columns) {
    assert(static_cast<int64_t>(values.size()) == rows * columns);
    return {values.data(), rows, columns};
}

Eigen::Map<const Vector> vector(const std::vector<double>& values) { return {values.data(), static_cast<Eigen::Index>(values.size())}; }

Eigen::SelfAdjointEigenSolver<Matrix> eigen(const Matrix& symmetric, int wants) {
    Eigen::SelfAdjointEigenSolver<Matrix> solver(symmetric, wants);
    if (solver.info() != Eigen::Success)
        throw InputError(
            "cannot compute a Frechet distance (the eigenvalues of a covariance do not converge). Check that the features are sound.");
    return solver;
}

double trace_of_root(const Matrix& symmetric) {
    if (symmetric.rows() == 0) return 0;
    const auto solver = eigen(symmetric, Eigen::EigenvaluesOnly);
    double sum = 0;
    for (const double value : solver.eigenvalues()) sum += std::sqrt(std::max(value, 0.0));
    return sum;
}

}  // namespace

FeatureAccumulator::FeatureAccumulator(int64_t dimension)
    : dimension_(dimension), sum_(static_cast<size_t>(dimension)), squares_(static_cast<size_t>(dimension * dimension)) {
    assert(dimension > 0);
}

template <typename T>
void FeatureAccumulator::add_rows(std::span<const T> features) {
    const auto size = static_cast<int64_t>(features.size());
    assert(size % dimension_ == 0);
    if (size == 0) return;
    using Rows = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
    const Eigen::Map<const Rows> all(features.data(), dimension_, size / dimension_);
    if (shift_.empty()) {
        const Vector mean = all.template cast<double>().rowwise().mean();
        shift_.assign(mean.begin(), mean.end());
    }
    Eigen::Map<Vector> sum(sum_.data(), dimension_);
    Eigen::Map<Matrix> squares(squares_.data(), dimension_, dimension_);
    constexpr Eigen::Index kRows = 256;  // of a copy in f64
    for (Eigen::Index first = 0; first < all.cols(); first += kRows) {
        const Eigen::Index rows = std::min(kRows, all.cols() - first);
        const Matrix x = all.middleCols(first, rows).template cast<double>().colwise() - vector(shift_);
        sum += x.rowwise().sum();
        squares.selfadjointView<Eigen::Lower>().rankUpdate(x);
    }
    count_ += all.cols();
}

void FeatureAccumulator::add(std::span<const float> features) { add_rows(features); }
void FeatureAccumulator::add(std::span<const double> features) { add_rows(features); }

FeatureStatistics FeatureAccumulator::statistics() const {
    if (count_ < 2)
        throw InputError(
            fmt::format("cannot tell how features spread ({} image{}). Give two or more; more than {} are needed for a sound figure.",
                        count_, count_ == 1 ? "" : "s", dimension_));
    const auto n = static_cast<double>(count_);
    const Vector mean = vector(sum_) / n;
    Matrix covariance = matrix(squares_, dimension_, dimension_).selfadjointView<Eigen::Lower>();
    covariance = (covariance - n * mean * mean.transpose()) / (n - 1);
    if (!covariance.allFinite())
        throw InputError(
            "cannot tell how features spread (some are not finite). The network has diverged, or its input is damaged: check both.");
    const Vector shifted = mean + vector(shift_);
    return {.count = count_,
            .mean = {shifted.begin(), shifted.end()},
            .covariance = {covariance.data(), covariance.data() + covariance.size()}};
}

CovarianceFactor covariance_factor(const FeatureStatistics& statistics) {
    const int64_t size = statistics.dimension();
    const auto solver = eigen(matrix(statistics.covariance, size, size), Eigen::ComputeEigenvectors);
    const Vector& values = solver.eigenvalues();  // ascending
    // smaller ones are rounding's, whose roots would not be small
    const double least = std::numeric_limits<double>::epsilon() * static_cast<double>(size) * values[size - 1];
    CovarianceFactor factor;
    for (Eigen::Index i = size; i-- > 0 && values[i] > least;) {
        const Vector column = solver.eigenvectors().col(i) * std::sqrt(values[i]);
        factor.values.insert(factor.values.end(), column.begin(), column.end());
        ++factor.rank;
    }
    return factor;
}

FrechetDistance frechet_distance(const FeatureStatistics& reference, const CovarianceFactor& factor, const FeatureStatistics& samples) {
    const int64_t size = reference.dimension();
    if (size != samples.dimension())
        throw InputError(fmt::format("cannot compare features ({} of the reference, {} of the samples). Take both from one network.", size,
                                     samples.dimension()));
    // Where a matrix F^T C F keeps a null space of C, each 0 of its eigenvalues is a rounding error, whose root is 1e-8 of the largest.
    const bool samples_are_fewer = samples.count - 1 < factor.rank;
    const CovarianceFactor own = samples_are_fewer ? covariance_factor(samples) : CovarianceFactor{};
    const CovarianceFactor& taken = samples_are_fewer ? own : factor;
    const auto f = matrix(taken.values, size, taken.rank);
    const Matrix product = matrix(samples_are_fewer ? reference.covariance : samples.covariance, size, size) * f;
    const double root = trace_of_root(f.transpose() * product);

    const double means = (vector(reference.mean) - vector(samples.mean)).squaredNorm();
    const double traces = matrix(reference.covariance, size, size).trace() + matrix(samples.covariance, size, size).trace();
    return {.distance = std::max(0.0, means + traces - 2 * root), .few_images = std::min(reference.count, samples.count) <= size};
}

FrechetDistance frechet_distance(const FeatureStatistics& reference, const FeatureStatistics& samples) {
    return frechet_distance(reference, covariance_factor(reference), samples);
}

}  // namespace jem
