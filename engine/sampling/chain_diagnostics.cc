#include "engine/sampling/chain_diagnostics.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace jem {
namespace {

constexpr double kWindow = 5;     // lags in units of the time
constexpr double kStill = 1e-20;  // of the values' squares: rounding
constexpr double kEnough = 50;    // length of chains in units of the time

}  // namespace

Autocorrelation autocorrelation(std::span<const double> values, int64_t chains) {
    const int64_t steps = chains > 0 ? std::ssize(values) / chains : 0;
    std::vector<double> away(values.begin(), values.end());  // from each chain's mean
    for (int64_t c = 0; c < chains; ++c) {
        double mean = 0;
        for (int64_t k = 0; k < steps; ++k) mean += values[static_cast<size_t>(k * chains + c)] / static_cast<double>(steps);
        for (int64_t k = 0; k < steps; ++k) away[static_cast<size_t>(k * chains + c)] -= mean;
    }
    const auto covariance = [&](int64_t lag) {
        double sum = 0;
        for (size_t i = 0; i < static_cast<size_t>((steps - lag) * chains); ++i)
            sum += away[i] * away[i + static_cast<size_t>(lag * chains)];
        return sum;
    };
    Autocorrelation out;
    out.time = 1;
    const double variance = covariance(0);
    double squares = 0;
    for (const double v : values) squares += v * v;
    if (!(variance > kStill * squares)) {
        out.time = std::numeric_limits<double>::quiet_NaN();
        return out;
    }
    out.rho.push_back(1);
    for (int64_t lag = 1; 2 * lag <= steps && static_cast<double>(lag - 1) < kWindow * out.time; ++lag) {
        out.rho.push_back(covariance(lag) / variance);
        out.time += 2 * out.rho.back();
    }
    out.time = std::max(1.0, out.time);
    out.enough = static_cast<double>(steps) >= kEnough * out.time;
    return out;
}

double quantile(std::vector<double> values, double q) {
    std::sort(values.begin(), values.end());
    const double at = q * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(at);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}

}  // namespace jem
