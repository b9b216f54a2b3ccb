#include "data/picture.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <stdexcept>
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

// stb compares no checksum, takes an early end for zeros, and trusts what a header announces. So damage is looked for here, and nothing
// reaches it that takes more memory or time than the file's length justifies. Each returns why not, or nothing.

constexpr const char* kEndsEarly = "it ends early";

/// Bytes of a PNG's rows before they are packed: each begins with its filter, and an interlaced picture is seven small ones.
uint64_t row_bytes_of_png(uint64_t width, uint64_t height, uint64_t bits, bool interlaced) {
    const auto rows = [&](uint64_t columns, uint64_t lines) { return columns > 0 ? lines * (1 + (columns * bits + 7) / 8) : 0; };
    if (!interlaced) return rows(width, height);
    struct Pass {
        uint64_t x, y, step_x, step_y;
    };
    constexpr Pass kPasses[] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4}, {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};
    uint64_t total = 0;
    for (const Pass& p : kPasses) total += rows((width + p.step_x - 1 - p.x) / p.step_x, (height + p.step_y - 1 - p.y) / p.step_y);
    return total;
}

/// Unpacks a PNG's pixels and throws them away.
class PixelCount {
public:
    /// Some writers pack a little more than the rows.
    static constexpr uint64_t kMostExtra = 65536;

    explicit PixelCount(uint64_t wanted) : wanted_(wanted) {
        if (inflateInit(&zlib_) != Z_OK) throw std::runtime_error("zlib failed in inflateInit (out of memory).");
    }
    ~PixelCount() { inflateEnd(&zlib_); }
    PixelCount(const PixelCount&) = delete;
    PixelCount& operator=(const PixelCount&) = delete;

    std::string add(Bytes packed) {
        zlib_.next_in = const_cast<uint8_t*>(packed.data());
        zlib_.avail_in = static_cast<uInt>(packed.size());
        while (!ended_) {
            std::array<uint8_t, 16384> out;
            zlib_.next_out = out.data();
            zlib_.avail_out = static_cast<uInt>(out.size());
            const int status = inflate(&zlib_, Z_NO_FLUSH);
            count_ += out.size() - zlib_.avail_out;
            if (count_ > wanted_ + kMostExtra) return "it holds more pixels than it announces";
            ended_ = status == Z_STREAM_END;
            if (status == Z_BUF_ERROR || (status == Z_OK && zlib_.avail_in == 0 && zlib_.avail_out > 0)) break;  // more is to come
            if (status != Z_OK && !ended_) return std::string("its pixels cannot be unpacked, ") + (zlib_.msg ? zlib_.msg : "broken");
        }
        return "";
    }
    bool complete() const { return ended_ && count_ >= wanted_; }

private:
    z_stream zlib_{};
    uint64_t wanted_, count_ = 0;
    bool ended_ = false;
};

std::string damage_of_png(Bytes file) {
    constexpr size_t kFrame = 12, kHeader = 13;  // of a chunk: length, name, checksum; bytes of IHDR
    constexpr uint64_t kChannels[] = {1, 0, 3, 1, 2, 0, 4};
    std::optional<PixelCount> pixels;
    for (size_t at = 8; file.size() - at >= kFrame;) {
        const size_t length = big_endian(file, at);
        if (length > file.size() - at - kFrame) break;
        const Bytes content = file.subspan(at + 8, length);
        const uint32_t checksum = static_cast<uint32_t>(crc32(0, file.data() + at + 4, static_cast<uInt>(length + 4)));
        const std::string_view name(reinterpret_cast<const char*>(file.data()) + at + 4, 4);
        if (checksum != big_endian(file, at + 8 + length)) return "a checksum differs at byte " + std::to_string(at + 8 + length);
        if (!pixels) {
            if (name != "IHDR" || length != kHeader || content[9] >= std::size(kChannels)) return "it does not begin with its sizes";
            pixels.emplace(
                row_bytes_of_png(big_endian(content, 0), big_endian(content, 4), kChannels[content[9]] * content[8], content[12] != 0));
        } else if (name == "IHDR") {
            return "it has two headers";
        }
        if (name == "IDAT")
            if (std::string why = pixels->add(content); !why.empty()) return why;
        if (name == "IEND") return pixels->complete() ? "" : "it has too few pixels";
        at += kFrame + length;
    }
    return kEndsEarly;
}

/// A table of codes: 16 counts and as many values. stb has room for 256, and does not look.
std::string damage_of_code_tables(Bytes tables) {
    constexpr size_t kCounts = 17, kMostCodes = 256;
    while (!tables.empty()) {
        if (tables.size() < kCounts) return kEndsEarly;
        const size_t codes = std::accumulate(tables.begin() + 1, tables.begin() + kCounts, size_t{0});
        if (codes > kMostCodes || codes > tables.size() - kCounts) return "a table of " + std::to_string(codes) + " codes";
        tables = tables.subspan(kCounts + codes);
    }
    return "";
}

std::string damage_of_jpeg(Bytes file) {
    constexpr int kMostScans = 100;  // progressive files have about ten; each is a pass over all blocks
    int scans = 0;
    size_t at = 2;
    const auto next_marker = [&] {  // leaves `at` behind it; false at the end
        while (at < file.size() && file[at] != 0xff) ++at;
        while (at < file.size() && file[at] == 0xff) ++at;
        return at++ < file.size();
    };
    while (next_marker()) {
        const uint8_t marker = file[at - 1];
        if (marker == 0xd9) return "";
        if (scans > 0 && (marker == 0 || (marker >= 0xd0 && marker <= 0xd7))) continue;  // inside a scan
        if (file.size() - at < 2) break;
        const size_t length = size_t{file[at]} << 8 | file[at + 1];
        if (length < 2 || length > file.size() - at) break;
        if (marker == 0xc4)
            if (std::string why = damage_of_code_tables(file.subspan(at + 2, length - 2)); !why.empty()) return why;
        if (marker == 0xda && ++scans > kMostScans) return "it has more than " + std::to_string(kMostScans) + " scans";
        at += length;
    }
    return kEndsEarly;
}

std::string damage_of_bmp(Bytes file) {
    if (file.size() < 30) return kEndsEarly;
    const bool old_form = little_endian(file, 14, 4) == 12;
    if (!old_form && (file.size() < 34 || little_endian(file, 30, 4) == 1 || little_endian(file, 30, 4) == 2))
        return "";  // packed: no reader
    const size_t side = old_form ? 2 : 4, sizes = 18;
    const int64_t width = little_endian(file, sizes, side), height = std::abs(little_endian(file, sizes + side, side));
    const int64_t bits = little_endian(file, sizes + 2 * side + 2, 2), row = (width * bits + 31) / 32 * 4;
    const int64_t room = std::ssize(file) - little_endian(file, 10, 4);
    if (height > 0 && (room <= 0 || row > room / height)) return kEndsEarly;
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

/// Of a JPEG: a block of 8 x 8 takes a bit at least, and of two components one may have a quarter of them.
constexpr int64_t kMostPixelsAByte = 1024;

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
    const char* kind = png ? "damaged PNG, " : jpeg ? "damaged JPEG, " : "damaged BMP, ";
    if (jpeg) why = damage_of_jpeg(content);  // first of all: stb's look at the sizes reads the tables of codes
    if (!why.empty()) return kind + why;
    why = size_of(picture, content);
    if (!why.empty()) return why;
    if (jpeg && int64_t{picture.width} * picture.height / kMostPixelsAByte > std::ssize(content))
        why = "it announces more pixels than it can hold";
    else if (!jpeg)
        why = png ? damage_of_png(content) : damage_of_bmp(content);
    if (!why.empty()) return kind + why;

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
