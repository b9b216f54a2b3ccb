// Sums over N, H, W that a convolution leaves for the norm beside it.
#pragma once

#include <cmath>
#include <string>
#include <utility>

#include "tests/check.h"
#include "tests/on_device.h"

namespace jem {

// got [2, C] against the sums over N, H, W of first(place in NCHW, channel), then of second. rounding: one of the arithmetic's.
template <class First, class Second>
void check_sums(const std::string& name, const Extent& e, const Values& got, double rounding, const First& first, const Second& second) {
    const auto channels = static_cast<size_t>(e.c);
    Values want(2 * channels), limit(2 * channels, 1e-30);
    // A term's difference and product, and sums of 16 values a tile of at most 64 tiles in f32: some ten roundings as they walk.
    constexpr double kRoundings = 16;
    for (size_t i = 0; i < static_cast<size_t>(e.count()); ++i) {
        const size_t c = i / static_cast<size_t>(e.rows()) % channels;
        for (const auto& [at, term] : {std::pair{c, first(i, c)}, std::pair{channels + c, second(i, c)}}) {
            want[at] += term;
            limit[at] += kRoundings * rounding * std::fabs(term);
        }
    }
    check_within(name, got, want, limit);
}

}  // namespace jem
