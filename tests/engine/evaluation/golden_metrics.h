// What other programs make of the metrics' inputs (tests/golden/metrics.json), and the inputs, as tests/golden/make_metrics.py makes them.
#pragma once

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/files/output_file.h"
#include "tests/check.h"

namespace jem {

inline nlohmann::json golden_metrics(const std::string& name) {
    return nlohmann::json::parse(read_file(std::string(JEM_GOLDEN_DIR) + "/metrics.json")).at(name);
}

// [count, dimension], each number with half of the one before it in its row.
inline std::vector<float> golden_features(uint64_t seed, int64_t count, int64_t dimension, double shift) {
    const Values draws = TestData(seed).uniforms(count * dimension, -1, 1);
    std::vector<float> x(draws.begin(), draws.end());
    for (size_t i = 0; i < x.size(); ++i)
        if (i % static_cast<size_t>(dimension) != 0) x[i] = static_cast<float>(double{x[i]} + 0.5 * double{x[i - 1]});
    for (float& v : x) v = static_cast<float>(double{v} + shift);
    return x;
}
// {seed, count, dimension, shift}
inline std::vector<float> golden_features(const nlohmann::json& of) { return golden_features(of[0], of[1], of[2], of[3]); }

// [count, classes], cubes of uniform numbers by their sum.
inline Values golden_probabilities(uint64_t seed, int64_t count, int64_t classes) {
    Values p = TestData(seed).uniforms(count * classes, 0, 1);
    for (double& v : p) v = v * v * v;
    const auto width = static_cast<size_t>(classes);
    for (size_t row = 0; row < p.size(); row += width) {
        double total = 0;
        for (size_t y = 0; y < width; ++y) total += p[row + y];
        for (size_t y = 0; y < width; ++y) p[row + y] /= total;
    }
    return p;
}

// {seed, count, low, high, steps}: rounded down to so many values a unit; 0: not.
inline Values golden_scores(const nlohmann::json& of) {
    Values s = TestData(of[0]).uniforms(of[1], of[2], of[3]);
    const double steps = of[4];
    if (steps > 0)
        for (double& v : s) v = std::floor(v * steps) / steps;
    return s;
}

}  // namespace jem
