#include "tools/jem_engine/sheet.h"

#include <stb/stb_image_write.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "data/input_error.h"
#include "engine/files/output_file.h"

namespace jem {
namespace {

constexpr uint8_t kGapGrey = 235;
using Rgb = std::array<uint8_t, 3>;
constexpr Rgb kNanColour = {255, 0, 255};

uint8_t to_byte(float x) { return static_cast<uint8_t>(std::lround(std::clamp((double{x} + 1) / 2 * 255, 0.0, 255.0))); }

/// `pixel`: [channels]
Rgb to_rgb(const float* pixel, int channels) {
    if (std::any_of(pixel, pixel + channels, [](float x) { return std::isnan(x); })) return kNanColour;
    const uint8_t first = to_byte(pixel[0]);
    return channels == 1 ? Rgb{first, first, first} : Rgb{first, to_byte(pixel[1]), to_byte(pixel[2])};
}

void check_layout(const SheetLayout& layout, size_t num_values) {
    const bool valid = layout.count >= 1 && layout.height >= 1 && layout.width >= 1 && (layout.channels == 1 || layout.channels == 3) &&
                       layout.columns >= 1 && layout.scale >= 1 && layout.gap >= 0;
    if (!valid || num_values != static_cast<size_t>(layout.count) * layout.height * layout.width * layout.channels) {
        throw std::logic_error("cannot lay out a sheet (its sizes do not fit " + std::to_string(num_values) + " values). This is a bug.");
    }
}

void append(void* png, void* data, int num_bytes) {
    static_cast<std::string*>(png)->append(static_cast<const char*>(data), static_cast<size_t>(num_bytes));
}

void write_png(const std::filesystem::path& path, const std::vector<uint8_t>& rgb, int height, int width) {
    std::string png;
    if (stbi_write_png_to_func(append, &png, width, height, 3, rgb.data(), width * 3) == 0)
        throw std::runtime_error("cannot write '" + path.string() + "' (the PNG encoder is out of memory). Take fewer images.");
    write_file(path, png);
}

struct SheetSize {
    int columns;
    int64_t cell_height, cell_width, height, width;  // in pixels, a cell with its gap
};

SheetSize size_of(const SheetLayout& layout) {
    const int columns = std::min(layout.columns, layout.count);
    const int rows = (layout.count + columns - 1) / columns;
    const int64_t cell_height = int64_t{layout.height} * layout.scale + layout.gap;
    const int64_t cell_width = int64_t{layout.width} * layout.scale + layout.gap;
    // The encoder counts bytes in int and needs room for its own buffers. Cells first, so that the products below cannot overflow.
    const int64_t max_bytes = std::numeric_limits<int>::max() / 4;
    const bool cells_fit = cell_height <= max_bytes && cell_width <= max_bytes;
    const int64_t height = cells_fit ? rows * cell_height - layout.gap : 0;
    const int64_t width = cells_fit ? columns * cell_width - layout.gap : 0;
    if (!cells_fit || width > max_bytes / 3 || height > max_bytes / (3 * width + 1)) {
        throw InputError("the sheet is too large (" + std::to_string(columns) + "x" + std::to_string(rows) + " cells of " +
                         std::to_string(cell_width) + "x" + std::to_string(cell_height) +
                         " pixels). Take fewer images or a smaller scale.");
    }
    return {columns, cell_height, cell_width, height, width};
}

}  // namespace

void require_sheet_fits(const SheetLayout& layout) { size_of(layout); }

void write_sheet(const std::filesystem::path& path, const std::vector<float>& images, const SheetLayout& layout) {
    check_layout(layout, images.size());
    const auto [columns, cell_height, cell_width, height, width] = size_of(layout);

    std::vector<uint8_t> rgb(static_cast<size_t>(height * width * 3), kGapGrey);  // [height,width,3]
    for (int i = 0; i < layout.count; ++i) {
        const int64_t top = i / columns * cell_height;
        const int64_t left = i % columns * cell_width;
        for (int y = 0; y < layout.height * layout.scale; ++y) {
            for (int x = 0; x < layout.width * layout.scale; ++x) {
                const int64_t source = (int64_t{i} * layout.height + y / layout.scale) * layout.width + x / layout.scale;
                const Rgb colour = to_rgb(&images[static_cast<size_t>(source * layout.channels)], layout.channels);
                std::copy(colour.begin(), colour.end(), &rgb[static_cast<size_t>(((top + y) * width + left + x) * 3)]);
            }
        }
    }
    write_png(path, rgb, static_cast<int>(height), static_cast<int>(width));
}

}  // namespace jem
