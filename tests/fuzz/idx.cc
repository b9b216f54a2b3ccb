// MNIST's files. The first byte chooses images or labels, and whether the rest is packed first: a fuzzer finds no valid checksum by itself.
#include "data/idx.h"

#include <zlib.h>

#include <vector>

#include "tests/fuzz/target.h"

namespace {

std::vector<uint8_t> gzipped(jem::fuzz::Bytes bytes) {
    z_stream zlib{};
    jem::fuzz::require(deflateInit2(&zlib, 1, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    std::vector<uint8_t> out(deflateBound(&zlib, bytes.size()));
    zlib.next_in = const_cast<uint8_t*>(bytes.data());
    zlib.avail_in = static_cast<uInt>(bytes.size());
    zlib.next_out = out.data();
    zlib.avail_out = static_cast<uInt>(out.size());
    jem::fuzz::require(deflate(&zlib, Z_FINISH) == Z_STREAM_END);
    out.resize(zlib.total_out);
    deflateEnd(&zlib);
    return out;
}

}  // namespace

JEM_FUZZ_TARGET(bytes) {
    using namespace jem;
    if (bytes.empty()) return;
    const fuzz::Bytes rest = bytes.subspan(1);
    const std::filesystem::path file = fuzz::file_of((bytes[0] & 2) != 0 ? gzipped(rest) : std::vector(rest.begin(), rest.end()));
    if ((bytes[0] & 1) != 0) {
        std::vector<int32_t> labels;
        if (!fuzz::reads([&] { labels = read_idx_labels(file, 10); })) return;
        fuzz::require(!labels.empty());
        for (const int32_t label : labels) fuzz::require(label >= 0 && label < 10);
    } else {
        std::vector<uint8_t> pixels;
        if (fuzz::reads([&] { pixels = read_idx_images(file, 28, 28); })) fuzz::require(!pixels.empty() && pixels.size() % 784 == 0);
    }
}
