// Statistics of a reference set's features, kept between evaluations: a pass over a training split takes minutes, and gives the same each
// time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "engine/evaluation/frechet.h"

namespace jem {

/// 64 bits of any bytes, given in pieces of any size: each word of 8 bytes (little-endian, the last padded with 0) is mixed in by
/// SplitMix64's finaliser (Steele et al. 2014), last of all their number. It tells other content by mistake, not by malice.
class Checksum {
public:
    void add(std::span<const std::byte> bytes);
    uint64_t value() const;

private:
    uint64_t state_ = 0, word_ = 0, num_bytes_ = 0;
};

/// What the statistics are of. All of it must be the same, for what is kept to be taken.
struct ReferenceKey {
    std::string data, split;  // "cifar10", "train"
    std::string network;      // what is known of it besides its weights: "inception", "wrn-16-4"
    int64_t images = 0;
    int64_t channels = 0, height = 0, width = 0;
    uint64_t pixels = 0, weights = 0;  // checksums of the images, and of the network's tensors

    /// One line of all of it.
    std::string text() const;
};

struct ReferenceStatistics {
    FeatureStatistics features;
    CovarianceFactor factor;
};

/// A folder of safetensors files, one a key. It may be deleted, or be on a full disk: that costs a computation, never a result, and is
/// told.
class FeatureCache {
public:
    /// Empty: nothing is kept.
    explicit FeatureCache(std::filesystem::path folder);

    /// Nothing where there is none, or where the file is damaged, which is told.
    std::optional<ReferenceStatistics> find(const ReferenceKey& key) const;
    /// Creates the folder. Tells where that, or writing, does not go.
    void keep(const ReferenceKey& key, const ReferenceStatistics& statistics) const;

    /// Where the statistics of a key lie.
    std::filesystem::path file(const ReferenceKey& key) const;

private:
    std::filesystem::path folder_;
};

}  // namespace jem
