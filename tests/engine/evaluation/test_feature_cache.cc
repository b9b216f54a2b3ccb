// Kept statistics come back bit for bit, for their own images and network alone, and damage costs no more than a computation.
#include "engine/evaluation/feature_cache.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/engine/evaluation/golden_metrics.h"
#include "tests/temp_folder.h"
#include "tests/told.h"

namespace jem {
namespace {

ReferenceKey key() {
    return {.data = "cifar10",
            .split = "train",
            .network = "small",
            .images = 20,
            .channels = 3,
            .height = 8,
            .width = 8,
            .pixels = 7,
            .weights = 9};
}

ReferenceStatistics statistics() {
    FeatureAccumulator accumulator(6);
    accumulator.add(golden_features(91, 20, 6, 1));
    ReferenceStatistics s;
    s.features = accumulator.statistics();
    s.factor = covariance_factor(s.features);
    return s;
}

uint64_t checksum(const std::vector<float>& values) {
    Checksum sum;
    sum.add(std::as_bytes(std::span(values)));
    return sum.value();
}

}  // namespace

TEST_CASE("reference_statistics_come_back_as_they_were_kept") {
    const TempFolder folder;
    const FeatureCache cache(folder.path() / "made" / "on_the_way");
    const ReferenceStatistics kept = statistics();
    CHECK(!cache.find(key()));
    cache.keep(key(), kept);
    const auto found = cache.find(key());
    REQUIRE(found);
    CHECK(found->features.count == 20);
    CHECK(found->features.mean == kept.features.mean);
    CHECK(found->features.covariance == kept.features.covariance);
    CHECK(found->factor.rank == 6);
    CHECK(found->factor.values == kept.factor.values);
}

TEST_CASE("reference_statistics_belong_to_one_set_and_one_network") {
    const TempFolder folder;
    const FeatureCache cache(folder.path());
    cache.keep(key(), statistics());
    std::vector<ReferenceKey> others(9, key());
    others[0].data = "cifar100";
    others[1].split = "test";
    others[2].network = "large";
    others[3].images = 21;
    others[4].channels = 1;
    others[5].height = 9;
    others[6].width = 9;
    others[7].pixels = 8;
    others[8].weights = 8;
    for (const ReferenceKey& other : others) {
        CAPTURE(other.text());
        CHECK(!cache.find(other));
    }
    CHECK(cache.find(key()));
    // a file of another key under this name is not taken either
    std::filesystem::copy_file(cache.file(key()), cache.file(others[0]));
    const Told told;
    CHECK(!cache.find(others[0]));
    CHECK(told.with("belongs to other images") == 1);
}

TEST_CASE("a_damaged_cache_is_told_and_not_taken") {
    const TempFolder folder;
    const FeatureCache cache(folder.path());
    cache.keep(key(), statistics());
    const std::string name = cache.file(key()).filename().string(), whole = folder.read(name);
    std::string flipped = whole;
    flipped.back() = static_cast<char>(flipped.back() ^ 1);
    for (const std::string& damaged : {std::string(), whole.substr(0, whole.size() / 2), flipped, whole + "x"}) {
        folder.write(name, damaged);
        const Told told;
        CHECK(!cache.find(key()));
        CHECK(told.with("computed anew") == 1);
    }
    cache.keep(key(), statistics());
    CHECK(cache.find(key()));
}

TEST_CASE("a_cache_that_cannot_be_written_costs_a_word") {
    const TempFolder folder;
    folder.write("file", "");
    const Told told;
    FeatureCache(folder.path() / "file" / "below").keep(key(), statistics());
    CHECK(told.with("not kept") == 1);
    FeatureCache("").keep(key(), statistics());
    CHECK(!FeatureCache("").find(key()));
}

TEST_CASE("a_checksum_sees_every_bit_and_no_pieces") {
    const std::vector<float> values = golden_features(92, 1, 25, 0);
    const auto bytes = std::as_bytes(std::span(values));
    Checksum pieces;
    for (size_t first = 0, size = 1; first < bytes.size(); first += size, size = size % 7 + 1)
        pieces.add(bytes.subspan(first, std::min(size, bytes.size() - first)));
    CHECK(pieces.value() == checksum(values));
    for (size_t i = 0; i < values.size(); ++i)
        for (size_t j = 0; j < i; ++j) {
            auto other = values;
            other[i] = -other[i];
            CHECK(checksum(other) != checksum(values));
            other[j] = -other[j];
            CHECK(checksum(other) != checksum(values));
        }
    auto longer = values;
    longer.push_back(0);
    CHECK(checksum(longer) != checksum(values));
    CHECK(checksum({}) != checksum({0}));
}

}  // namespace jem
