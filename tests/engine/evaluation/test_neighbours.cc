// Nearest rows against a search through all distances.
#include "engine/evaluation/neighbours.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "tests/check.h"

namespace jem {
namespace {

std::vector<float> rows(uint64_t seed, int64_t count, int64_t dimension) {
    const Values values = TestData(seed).uniforms(count * dimension, -1, 1);
    return {values.begin(), values.end()};
}

NeighbourReference reference_of(const std::vector<float>& all, int64_t dimension) {
    return {std::ssize(all) / dimension, [&all, dimension](int64_t first, int64_t n) {
                return std::vector<float>(all.begin() + first * dimension, all.begin() + (first + n) * dimension);
            }};
}

}  // namespace

TEST_CASE("neighbours_are_those_of_a_search_through_all_distances") {
    constexpr int64_t kDimension = 7, kCount = 2100, kSamples = 5, kNearest = 4;  // more than two blocks
    const std::vector<float> reference = rows(1, kCount, kDimension), samples = rows(2, kSamples, kDimension);
    int64_t told = 0;
    const auto got =
        nearest_neighbours({samples, kDimension}, reference_of(reference, kDimension), kNearest, [&](int64_t done) { told = done; });
    CHECK(told == kCount);
    REQUIRE(got.size() == kSamples);
    for (int64_t s = 0; s < kSamples; ++s) {
        std::vector<std::pair<double, int64_t>> all;
        for (int64_t r = 0; r < kCount; ++r) {
            double squares = 0;
            for (int64_t d = 0; d < kDimension; ++d)
                squares += std::pow(
                    double{reference[static_cast<size_t>(r * kDimension + d)]} - samples[static_cast<size_t>(s * kDimension + d)], 2);
            all.emplace_back(std::sqrt(squares), r);
        }
        std::sort(all.begin(), all.end());
        for (size_t k = 0; k < kNearest; ++k) {
            CHECK(got[static_cast<size_t>(s)][k].number == all[k].second);
            CHECK(got[static_cast<size_t>(s)][k].distance == doctest::Approx(all[k].first).epsilon(1e-6));
        }
    }
}

TEST_CASE("a_row_is_its_own_neighbour_and_of_equal_ones_the_first_counts") {
    const std::vector<float> reference = {1, 0, 0, 1, 1, 0, 5, 5}, sample = {1, 0};
    const auto got = nearest_neighbours({sample, 2}, reference_of(reference, 2), 9);
    REQUIRE(got[0].size() == 4);
    CHECK(got[0][0].number == 0);
    CHECK(got[0][0].distance == 0);
    CHECK(got[0][1].number == 2);
    CHECK(got[0][2].number == 1);
    CHECK(got[0][3].number == 3);
}

}  // namespace jem
