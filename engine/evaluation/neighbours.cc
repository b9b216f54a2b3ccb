#include "engine/evaluation/neighbours.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace jem {
namespace {

constexpr int64_t kBlock = 1000;  // rows of the reference at a time
constexpr double kSame = 1e-12;   // rounding must not part rows that are the same

using Matrix = Eigen::MatrixXd;  // a row of the callers' a column

Matrix columns(const std::vector<float>& rows, int64_t dimension) {
    return Eigen::Map<const Eigen::MatrixXf>(rows.data(), dimension, std::ssize(rows) / dimension).cast<double>();
}

}  // namespace

std::vector<std::vector<Neighbour>> nearest_neighbours(const Features& samples, const NeighbourReference& reference, int64_t k,
                                                       const std::function<void(int64_t)>& progress) {
    const int64_t dimension = samples.dimension;
    const Matrix x = columns({samples.values.begin(), samples.values.end()}, dimension);
    const Eigen::VectorXd own = x.colwise().squaredNorm();
    std::vector<std::vector<Neighbour>> nearest(static_cast<size_t>(x.cols()));  // by squared distance until the end
    for (int64_t first = 0; first < reference.count; first += kBlock) {
        const int64_t n = std::min(kBlock, reference.count - first);
        const std::vector<float> rows = reference.rows(first, n);
        if (std::ssize(rows) != n * dimension) throw std::logic_error("Neighbours are looked for among rows of another length.");
        const Matrix y = columns(rows, dimension);
        const Eigen::VectorXd others = y.colwise().squaredNorm();
        const Matrix products = y.transpose() * x;  // [n, samples]
#pragma omp parallel for schedule(static)
        for (Eigen::Index sample = 0; sample < x.cols(); ++sample) {
            std::vector<Neighbour>& found = nearest[static_cast<size_t>(sample)];
            for (Eigen::Index row = 0; row < n; ++row) {
                const double scale = own[sample] + others[row], between = scale - 2 * products(row, sample);
                const double squared = between > kSame * scale ? between : 0;
                if (std::ssize(found) == k && !(squared < found.back().distance)) continue;
                const auto at = std::upper_bound(found.begin(), found.end(), squared,
                                                 [](double value, const Neighbour& neighbour) { return value < neighbour.distance; });
                found.insert(at, {first + row, squared});
                if (std::ssize(found) > k) found.pop_back();
            }
        }
        if (progress) progress(first + n);
    }
    for (std::vector<Neighbour>& found : nearest)
        for (Neighbour& one : found) one.distance = std::sqrt(one.distance);
    return nearest;
}

}  // namespace jem
