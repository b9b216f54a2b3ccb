#include "data/picture.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>

#define STBI_NO_STDIO
#include <stb/stb_image.h>

namespace jem {
namespace {

using Bytes = std::span<const uint8_t>;

constexpr uint64_t kMostFileBytes = uint64_t{1} << 30;

bool begins_with(Bytes file, std::string_view start) {
    return file.size() >= start.size() && std::memcmp(file.data(), start.data(), start.size()) == 0;
}

uint32_t big_endian(Bytes file, size_t at) {
    return uint32_t{file[at]} << 24 | uint32_t{file[at + 1]} << 16 | uint32_t{file[at + 2]} << 8 | file[at + 3];
}

int64_t little_endian(Bytes file, size_t at, size_t num_bytes) {
    uint32_t value = 0;
    for (size_t i = 0; i < num_bytes; ++i) value |= uint32_t{file[at + i]} << (8 * i);
    return num_bytes == 4 ? int64_t{static_cast<int32_t>(value)} : value;
}

// stb compares no checksum, and takes an early end for zeros. So damage is looked for here; each returns why, or nothing.

std::string damage_of_png(Bytes file) {
    size_t at = 8;
    while (file.size() - at >= 12) {
        const size_t length = big_endian(file, at);
        if (length > file.size() - at - 12) break;
        const uint32_t checksum = static_cast<uint32_t>(crc32(0, file.data() + at + 4, static_cast<uInt>(length + 4)));
        const std::string_view name(reinterpret_cast<const char*>(file.data()) + at + 4, 4);
        if (checksum != big_endian(file, at + 8 + length))
            return "damaged PNG, a checksum differs at byte " + std::to_string(at + 8 + length);
        if (name == "IEND") return "";
        at += 12 + length;
    }
    return "damaged PNG, it ends early";
}

std::string damage_of_jpeg(Bytes file) {
    // Entropy-coded data never holds these two; what may stand in front (a preview) and behind a picture has both.
    constexpr uint8_t kStartOfScan[] = {0xff, 0xda}, kEnd[] = {0xff, 0xd9};
    const auto scan = std::find_end(file.begin(), file.end(), std::begin(kStartOfScan), std::end(kStartOfScan));
    if (std::search(scan, file.end(), std::begin(kEnd), std::end(kEnd)) == file.end()) return "damaged JPEG, it ends early";
    return "";
}

std::string damage_of_bmp(Bytes file) {
    if (file.size() < 30) return "damaged BMP, it ends early";
    const bool old_form = little_endian(file, 14, 4) == 12;
    if (!old_form && (file.size() < 34 || little_endian(file, 30, 4) == 1 || little_endian(file, 30, 4) == 2))
        return "";  // packed: no reader
    const size_t side = old_form ? 2 : 4, sizes = 18;
    const int64_t width = little_endian(file, sizes, side), height = std::abs(little_endian(file, sizes + side, side));
    const int64_t bits = little_endian(file, sizes + 2 * side + 2, 2), row = (width * bits + 31) / 32 * 4;
    const int64_t room = std::ssize(file) - little_endian(file, 10, 4);
    if (height > 0 && (room <= 0 || row > room / height)) return "damaged BMP, it ends early";
    return "";
}

std::string content_of(std::vector<uint8_t>& content, const std::filesystem::path& file) {
    std::error_code error;
    const uint64_t num_bytes = std::filesystem::file_size(file, error);
    if (error) return error.message();
    if (num_bytes > kMostFileBytes) return "the file has more than 1 GiB";
    errno = 0;
    std::ifstream stream(file, std::ios::binary);
    if (!stream) return std::generic_category().message(errno);
    content.resize(num_bytes);
    if (!stream.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(num_bytes)))
        return "it cannot be read to its end";
    return "";
}

/// Height and width, or why not.
std::string size_of(DecodedPicture& picture, Bytes file) {
    if (!stbi_info_from_memory(file.data(), static_cast<int>(file.size()), &picture.width, &picture.height, &picture.channels))
        return "its header is damaged or announces too many pixels";
    if (picture.width < 1 || picture.height < 1) return "it has no pixels";
    if (int64_t{picture.width} * picture.height > kMostPicturePixels)
        return std::to_string(picture.width) + "x" + std::to_string(picture.height) + " pixels are more than " +
               std::to_string(kMostPicturePixels);
    return "";
}

}  // namespace

std::variant<DecodedPicture, std::string> read_picture(const std::filesystem::path& file) {
    std::vector<uint8_t> content;
    std::string why = content_of(content, file);
    if (!why.empty()) return why;
    const bool png = begins_with(content, "\x89PNG\r\n\x1a\n"), jpeg = begins_with(content, "\xff\xd8\xff"),
               bmp = begins_with(content, "BM");
    if (!png && !jpeg && !bmp) return content.empty() ? "the file is empty" : "it is no PNG, JPEG or BMP file";
    DecodedPicture picture;
    why = size_of(picture, content);
    if (why.empty()) why = png ? damage_of_png(content) : jpeg ? damage_of_jpeg(content) : damage_of_bmp(content);
    if (!why.empty()) return why;

    int stored = 0;
    const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
        stbi_load_from_memory(content.data(), static_cast<int>(content.size()), &picture.width, &picture.height, &stored, 0),
        stbi_image_free);
    if (!pixels) return std::string("it cannot be decoded: ") + stbi_failure_reason();
    picture.channels = stored < 3 ? 1 : 3;
    const size_t num_pixels = static_cast<size_t>(picture.width) * static_cast<size_t>(picture.height);
    const auto step = static_cast<size_t>(stored), kept = static_cast<size_t>(picture.channels);
    if (step == kept) {
        picture.pixels.assign(pixels.get(), pixels.get() + num_pixels * kept);
    } else {
        picture.pixels.resize(num_pixels * kept);
        for (size_t p = 0; p < num_pixels; ++p) std::copy_n(pixels.get() + p * step, kept, picture.pixels.data() + p * kept);
    }
    return picture;
}

}  // namespace jem
