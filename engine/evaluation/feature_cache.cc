#include "engine/evaluation/feature_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <utility>
#include <vector>

#include "data/input_error.h"
#include "engine/files/messages.h"
#include "engine/files/output_file.h"
#include "engine/files/safetensors.h"

namespace jem {
namespace {

// Changes with what is stored.
constexpr const char* kForm = "jem_engine reference statistics 1";

uint64_t mixed(uint64_t state, uint64_t word) {
    uint64_t z = (state ^ word) + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

uint64_t checksum_of(const ReferenceStatistics& s) {
    Checksum sum;
    for (const std::vector<double>* values : {&s.features.mean, &s.features.covariance, &s.factor.values})
        sum.add(std::as_bytes(std::span(*values)));
    return sum.value();
}

std::string hexadecimal(uint64_t value) { return fmt::format("{:016x}", value); }

std::string metadata_of(const SafetensorsFile& file, const std::string& name) {
    const auto found = file.metadata.find(name);
    if (found == file.metadata.end()) throw InputError("it lacks '" + name + "'");
    return found->second;
}

// InputError where the file is not what keep() writes.
ReferenceStatistics statistics_of(const SafetensorsFile& file) {
    if (metadata_of(file, "form") != kForm) throw InputError("another version wrote it");
    ReferenceStatistics s;
    const std::vector<int64_t> count = file.ints("count");
    s.features.mean = file.doubles("mean");
    s.features.covariance = file.doubles("covariance");
    s.factor.values = file.doubles("factor");
    const auto size = static_cast<size_t>(s.features.dimension());
    if (count.size() != 1 || count[0] < 2 || size == 0 || s.features.covariance.size() != size * size ||
        s.factor.values.size() % size != 0 || s.factor.values.size() > size * size)
        throw InputError("its tensors do not fit each other");
    if (metadata_of(file, "checksum") != hexadecimal(checksum_of(s))) throw InputError("its values are not those that were written");
    s.features.count = count[0];
    s.factor.rank = static_cast<int64_t>(s.factor.values.size() / size);
    return s;
}

}  // namespace

void Checksum::add(std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes) {
        word_ |= static_cast<uint64_t>(byte) << (8 * (num_bytes_ % 8));
        if (++num_bytes_ % 8 == 0) state_ = mixed(state_, std::exchange(word_, 0));
    }
}

uint64_t Checksum::value() const { return mixed(num_bytes_ % 8 == 0 ? state_ : mixed(state_, word_), num_bytes_); }

std::string ReferenceKey::text() const {
    return fmt::format("{} {}, {} images of {}x{}x{}, pixels {}, by {}, weights {}", data, split, images, channels, height, width,
                       hexadecimal(pixels), network, hexadecimal(weights));
}

FeatureCache::FeatureCache(std::filesystem::path folder) : folder_(std::move(folder)) {}

std::filesystem::path FeatureCache::file(const ReferenceKey& key) const {
    const std::string text = key.text();
    Checksum sum;
    sum.add(std::as_bytes(std::span(text)));
    return folder_ / ("reference_" + hexadecimal(sum.value()) + ".safetensors");
}

std::optional<ReferenceStatistics> FeatureCache::find(const ReferenceKey& key) const {
    std::error_code ignored;
    if (folder_.empty() || !std::filesystem::exists(file(key), ignored)) return std::nullopt;
    try {
        const SafetensorsFile kept = SafetensorsFile::read(file(key));
        if (metadata_of(kept, "key") != key.text()) throw InputError("it belongs to other images or to another network");
        return statistics_of(kept);
    } catch (const std::exception& e) {
        tell(fmt::format("Reference statistics are computed anew, what is kept in '{}' is of no use: {}", file(key).string(), e.what()));
        return std::nullopt;
    }
}

void FeatureCache::keep(const ReferenceKey& key, const ReferenceStatistics& s) const {
    if (folder_.empty()) return;
    const int64_t size = s.features.dimension();
    SafetensorsFile out;
    out.metadata = {{"form", kForm}, {"key", key.text()}, {"checksum", hexadecimal(checksum_of(s))}};
    out.tensors["count"] = make_file_tensor(std::span<const int64_t>(&s.features.count, 1), {1});
    out.tensors["mean"] = make_file_tensor(std::span<const double>(s.features.mean), {size});
    out.tensors["covariance"] = make_file_tensor(std::span<const double>(s.features.covariance), {size, size});
    out.tensors["factor"] = make_file_tensor(std::span<const double>(s.factor.values), {s.factor.rank, size});
    try {
        create_folder(folder_);
        out.write_atomically(file(key));
    } catch (const std::exception& e) {
        tell(fmt::format("Reference statistics are not kept, the next evaluation computes them again: {}", e.what()));
    }
}

}  // namespace jem
