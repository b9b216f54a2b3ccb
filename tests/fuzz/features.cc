// Kept statistics of a reference set. What is a safetensors file gets the key and the checksum that its values ask for, every second time:
// a fuzzer finds neither by itself.
#include "engine/evaluation/feature_cache.h"

#include <fmt/format.h>

#include "engine/files/safetensors.h"
#include "tests/fuzz/target.h"

namespace {

void make_plausible(const std::filesystem::path& path, const jem::ReferenceKey& key) {
    using namespace jem;
    fuzz::reads([&] {
        SafetensorsFile file = SafetensorsFile::read(path);
        Checksum sum;
        for (const char* name : {"mean", "covariance", "factor"}) {
            const std::vector<double> values = file.doubles(name);
            sum.add(std::as_bytes(std::span(values)));
        }
        file.metadata["key"] = key.text();
        file.metadata["checksum"] = fmt::format("{:016x}", sum.value());
        for (const auto& [name, tensor] : file.tensors)
            if (tensor.type == FileType::other) return;
        file.write_atomically(path);
    });
}

}  // namespace

JEM_FUZZ_TARGET(bytes) {
    using namespace jem;
    if (bytes.empty()) return;
    const FeatureCache cache("features");
    const ReferenceKey key{.data = "cifar10", .split = "train", .network = "inception"};
    std::filesystem::create_directory("features");
    fuzz::file_of(bytes.subspan(1), cache.file(key).c_str());
    if ((bytes[0] & 1) != 0) make_plausible(cache.file(key), key);
    const auto found = cache.find(key);
    if (!found) return;
    const auto size = static_cast<size_t>(found->features.dimension());
    fuzz::require(size > 0 && found->features.count > 1 && found->features.covariance.size() == size * size);
    fuzz::require(found->factor.values.size() == size * static_cast<size_t>(found->factor.rank));
    cache.keep(key, *found);
    fuzz::require(cache.find(key).has_value());
}
