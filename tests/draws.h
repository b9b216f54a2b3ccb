// The engine's random draws once more, in double and by the C library: what the ops' draws are compared with.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/random.h"

namespace jem {

// Draw 0..3 of a group of four: Box-Muller over 23 bits for the radius and 24 for the angle.
inline double expected_normal(const Random4& r, int lane) {
    const uint32_t* pair = r.v + lane / 2 * 2;
    const double u = (static_cast<double>(pair[0] >> 9) + 0.5) / 8388608.0;
    const double angle = 2 * 3.14159265358979323846 * (static_cast<double>(pair[1] >> 8) / 16777216.0);
    return std::sqrt(-2 * std::log(u)) * (lane % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

inline double expected_uniform(uint32_t bits) { return (static_cast<double>(bits >> 9) + 0.5) / 8388608.0; }

inline uint32_t expected_index(uint32_t bits, uint32_t n) { return static_cast<uint32_t>(uint64_t{bits} * n / 4294967296u); }

// Error of an f32 draw of N(0, 1) whose size is below 6: roundings in log, root and circle.
inline constexpr double kNormalError = 4e-6;

}  // namespace jem
