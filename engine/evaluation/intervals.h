// Intervals of a share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace jem {

struct Interval {
    double low = 0, high = 1;
};

// Of the share hits / count, at 95 % (Wilson 1927). The whole of [0, 1] where nothing was counted.
inline Interval wilson_interval(int64_t hits, int64_t count) {
    if (count == 0) return {};
    constexpr double z = 1.959963984540054;  // the normal distribution's 97.5 % point
    const auto n = static_cast<double>(count);
    const double share = static_cast<double>(hits) / n, z2 = z * z / n;
    const double centre = (share + z2 / 2) / (1 + z2), half = z / (1 + z2) * std::sqrt(share * (1 - share) / n + z2 / (4 * n));
    return {hits == 0 ? 0 : std::max(0.0, centre - half), hits == count ? 1 : std::min(1.0, centre + half)};
}

}  // namespace jem
