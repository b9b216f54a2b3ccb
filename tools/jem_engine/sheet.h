#pragma once

#include <filesystem>
#include <vector>

namespace jem {

/// How a sheet of images is laid out. All sizes in pixels.
struct SheetLayout {
    int count = 0;     // images, >= 1
    int height = 0;    // of one image
    int width = 0;     // of one image
    int channels = 0;  // 1 (grey) or 3 (RGB)
    int columns = 10;  // images a row, >= 1
    int scale = 1;     // each pixel becomes scale x scale, >= 1
    int gap = 2;       // light space between neighbours, >= 0
};

/// Writes a grid of images as an 8-bit RGB PNG, row by row from the top left; a cell without an image has the colour of the gap.
/// `images` is [count,height,width,channels] in [-1, 1]: byte = round((x + 1) / 2 * 255), clamped; a pixel with a NaN is magenta.
/// Written by way of OutputFile, which tells the errors. InputError where the sheet is too large; std::logic_error for a layout that does
/// not fit `images`.
void write_sheet(const std::filesystem::path& path, const std::vector<float>& images, const SheetLayout& layout);

/// InputError where write_sheet would say that the sheet is too large.
void require_sheet_fits(const SheetLayout& layout);

}  // namespace jem
