#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <variant>
#include <vector>

namespace jem {

/// An image as a file holds it.
struct DecodedPicture {
    int height = 0, width = 0, channels = 0;  // 1 or 3
    std::vector<uint8_t> pixels;              // [H,W,C], 0..255; 16 bits are cut to 8, transparency is dropped
};

/// Largest picture that is read, in pixels.
constexpr int64_t kMostPicturePixels = int64_t{1} << 26;

/// Reads a PNG, JPEG or BMP file, told apart by content. In place of it comes why it cannot be used: no such format, damaged (as far as the
/// format can tell: PNG has checksums, the others an end), too large, not readable. Nothing is allocated for a size that is refused.
std::variant<DecodedPicture, std::string> read_picture(const std::filesystem::path& file);

}  // namespace jem
