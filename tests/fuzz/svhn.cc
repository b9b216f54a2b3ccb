// SVHN's MATLAB files. The first byte says whether elements are packed first: a fuzzer finds no valid checksum by itself.
#include "data/svhn.h"

#include <zlib.h>

#include <cstring>
#include <vector>

#include "tests/fuzz/target.h"

namespace {

using jem::fuzz::Bytes;

uint32_t word(Bytes bytes, size_t at) {
    uint32_t value = 0;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
}

void add_word(std::vector<uint8_t>& out, size_t value) {
    for (int i = 0; i < 4; ++i) out.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

/// Whole elements become compressed ones; what is no element stays.
std::vector<uint8_t> packed(Bytes bytes) {
    constexpr size_t kHeader = 128, kTag = 8, kCompressed = 15;
    if (bytes.size() < kHeader) return {bytes.begin(), bytes.end()};
    std::vector<uint8_t> out(bytes.begin(), bytes.begin() + kHeader);
    size_t at = kHeader;
    while (bytes.size() - at >= kTag) {
        const size_t length = kTag + word(bytes, at + 4);
        if (length > bytes.size() - at) break;
        std::vector<uint8_t> small(compressBound(length));
        uLongf size = small.size();
        jem::fuzz::require(compress2(small.data(), &size, bytes.data() + at, length, 1) == Z_OK);
        add_word(out, kCompressed);
        add_word(out, size);
        out.insert(out.end(), small.begin(), small.begin() + static_cast<std::ptrdiff_t>(size));
        at += length;
    }
    const Bytes rest = bytes.subspan(at);
    out.insert(out.end(), rest.begin(), rest.end());
    return out;
}

}  // namespace

JEM_FUZZ_TARGET(bytes) {
    using namespace jem;
    if (bytes.empty()) return;
    const fuzz::Bytes rest = bytes.subspan(1);
    const std::filesystem::path file = fuzz::file_of((bytes[0] & 1) != 0 ? packed(rest) : std::vector(rest.begin(), rest.end()));
    ImageSet set;
    if (!fuzz::reads([&] { read_svhn_set(set, {file}); })) return;
    fuzz::require(set.count() > 0 && set.pixels.size() == set.labels.size() * 3072);
    for (const int32_t label : set.labels) fuzz::require(label >= 0 && label < 10);
}
