// PNG, JPEG and BMP files, and what fits them to a network. The first byte chooses the network's images.
#include "data/picture.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "data/resize.h"
#include "tests/fuzz/target.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed);

namespace {

using jem::fuzz::Bytes;

constexpr size_t kStart = 8, kFrame = 12;  // of a PNG; of its chunks' length, name and checksum
constexpr std::string_view kSignature = "\x89PNG\r\n\x1a\n";

uint32_t big_endian(const uint8_t* b) { return uint32_t{b[0]} << 24 | uint32_t{b[1]} << 16 | uint32_t{b[2]} << 8 | b[3]; }

void put_big_endian(uint8_t* b, size_t value) {
    for (int i = 0; i < 4; ++i) b[i] = static_cast<uint8_t>(value >> (24 - 8 * i));
}

void set_checksums(std::vector<uint8_t>& png) {
    for (size_t at = kStart; png.size() - at >= kFrame;) {
        const size_t length = big_endian(&png[at]);
        if (length > png.size() - at - kFrame) return;
        put_big_endian(&png[at + 8 + length], crc32(0, &png[at + 4], static_cast<uInt>(length + 4)));
        at += kFrame + length;
    }
}

/// Changes the pixels inside the first chunk of them, which hide behind zlib.
void change_pixels(std::vector<uint8_t>& png) {
    for (size_t at = kStart; png.size() - at >= kFrame;) {
        const size_t length = big_endian(&png[at]);
        if (length > png.size() - at - kFrame) return;
        if (std::memcmp(&png[at + 4], "IDAT", 4) == 0) {
            std::vector<uint8_t> rows(1 << 16);
            uLongf size = rows.size() / 2;
            if (uncompress(rows.data(), &size, &png[at + 8], length) != Z_OK) return;
            size = LLVMFuzzerMutate(rows.data(), size, rows.size());
            std::vector<uint8_t> small(compressBound(size));
            uLongf small_size = small.size();
            if (compress2(small.data(), &small_size, rows.data(), size, 9) != Z_OK) return;
            const auto first = png.begin() + static_cast<std::ptrdiff_t>(at + 8);
            png.erase(first, first + static_cast<std::ptrdiff_t>(length));
            png.insert(png.begin() + static_cast<std::ptrdiff_t>(at + 8), small.begin(),
                       small.begin() + static_cast<std::ptrdiff_t>(small_size));
            put_big_endian(&png[at], small_size);
            return;
        }
        at += kFrame + length;
    }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
    const bool pixels = seed % 4 == 0;
    if (!pixels) size = LLVMFuzzerMutate(data, size, most);
    if (size < 1 + kStart || seed % 4 == 1 || std::memcmp(data + 1, kSignature.data(), kStart) != 0)
        return pixels ? LLVMFuzzerMutate(data, size, most) : size;
    std::vector<uint8_t> png(data + 1, data + size);
    if (pixels) change_pixels(png);
    set_checksums(png);
    if (png.size() >= most) return size;
    std::copy(png.begin(), png.end(), data + 1);
    return png.size() + 1;
}

JEM_FUZZ_TARGET(bytes) {
    using namespace jem;
    if (bytes.empty()) return;
    const std::filesystem::path file = fuzz::file_of(bytes.subspan(1));
    const auto read = read_picture(file);
    const auto* picture = std::get_if<DecodedPicture>(&read);
    if (picture == nullptr) return fuzz::require(!std::get<std::string>(read).empty());
    fuzz::require(picture->height > 0 && picture->width > 0 && (picture->channels == 1 || picture->channels == 3));
    const auto values = size_t{static_cast<unsigned>(picture->height)} * static_cast<unsigned>(picture->width);
    fuzz::require(picture->pixels.size() == values * static_cast<unsigned>(picture->channels));
    const int channels = (bytes[0] & 1) != 0 ? 1 : 3, size = (bytes[0] & 2) != 0 ? 8 : 64;
    std::vector<uint8_t> out(static_cast<size_t>(channels * size * size));
    fit(out, {.pixels = picture->pixels, .height = picture->height, .width = picture->width, .channels = picture->channels}, channels, size,
        (bytes[0] & 4) != 0 ? Crop::top : Crop::centre);
}
