// What the numeric tests share: data that is the same on every machine, and a comparison whose failure can be read.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

namespace jem {

using Values = std::vector<double>;

// Test data (SplitMix64), independent of the engine's own generator. Every value is an f32, so that all devices see the same numbers.
class TestData {
public:
    explicit TestData(uint64_t seed) : state_(seed) {}

    uint64_t bits() {
        uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    int64_t index(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
    double uniform(double low, double high) { return static_cast<float>(low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53); }
    double normal() { return static_cast<float>(std::sqrt(-2 * std::log(1 - unit())) * std::cos(6.283185307179586 * unit())); }
    Values uniforms(int64_t count, double low, double high) {
        Values out(static_cast<size_t>(count));
        for (double& v : out) v = uniform(low, high);
        return out;
    }
    Values normals(int64_t count, double mean = 0, double deviation = 1) {
        Values out(static_cast<size_t>(count));
        for (double& v : out) v = static_cast<float>(mean + deviation * normal());
        return out;
    }

private:
    double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

    uint64_t state_;
};

// |got - want| <= absolute + relative * |want|; a NaN or an infinity must be met exactly.
struct Tolerance {
    double absolute = 0, relative = 0;
};

// One limit for each value. Prints the first few that differ: index, got, want, tolerance.
inline void check_within(const std::string& what, const Values& got, const Values& want, const Values& limits) {
    REQUIRE_MESSAGE(got.size() == want.size(), what);
    REQUIRE_MESSAGE(got.size() == limits.size(), what);
    constexpr int kShown = 4;
    int wrong = 0;
    std::ostringstream report;
    report.precision(17);
    for (size_t i = 0; i < got.size(); ++i) {
        const bool same = got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]));
        if (same || std::abs(got[i] - want[i]) <= limits[i]) continue;
        if (++wrong <= kShown)
            report << "\n  [" << i << "] got " << got[i] << ", want " << want[i] << ", tolerance " << limits[i] << ", off by "
                   << std::abs(got[i] - want[i]);
    }
    CHECK_MESSAGE(wrong == 0, what, ": ", wrong, " of ", got.size(), " values differ", report.str());
}

inline void check_close(const std::string& what, const Values& got, const Values& want, Tolerance tolerance) {
    Values limits;
    limits.reserve(want.size());
    for (const double v : want) limits.push_back(tolerance.absolute + (std::isfinite(v) ? tolerance.relative * std::abs(v) : 0));
    check_within(what, got, want, limits);
}

inline void check_equal(const std::string& what, const Values& got, const Values& want) { check_close(what, got, want, Tolerance{}); }

}  // namespace jem
