#include "data/resize.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <utility>
#include <vector>

namespace jem {
namespace {

// Pillow's fixed point: 8 bits of pixel and 2 for sums stay free of 32.
constexpr int kWeightBits = 32 - 8 - 2;

/// The part [first, first + count) of an axis that has been resized from `from` to `to` pixels.
struct Window {
    int64_t from, to, first, count;  // of a line of millions of pixels `to` may be beyond 32 bits
};

/// What one pixel of the resized axis is made of.
struct Taps {
    int first;                     // of the pixels it reads
    std::vector<int32_t> weights;  // their weights, times 2^kWeightBits
    int end() const { return first + static_cast<int>(weights.size()); }
};

/// Where the size stays, a pixel's own weight is 1 and all others are 0: a copy.
std::vector<Taps> triangle_taps(const Window& window) {
    const double scale = static_cast<double>(window.from) / static_cast<double>(window.to);
    const double reach = std::max(scale, 1.0), narrow = 1.0 / reach;
    std::vector<Taps> all;
    std::vector<double> weights;
    for (int64_t i = window.first; i < window.first + window.count; ++i) {
        const double centre = (static_cast<double>(i) + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(centre - reach + 0.5));
        const int end = static_cast<int>(std::min(static_cast<double>(window.from), centre + reach + 0.5));
        weights.clear();
        double sum = 0;
        for (int x = first; x < end; ++x) {
            weights.push_back(std::max(0.0, 1.0 - std::abs((x - centre + 0.5) * narrow)));
            sum += weights.back();
        }
        Taps taps{.first = first, .weights = {}};
        for (const double weight : weights)  // none is negative: adding a half and cutting off rounds
            taps.weights.push_back(static_cast<int32_t>(0.5 + weight / sum * (1 << kWeightBits)));
        all.push_back(std::move(taps));
    }
    return all;
}

/// Resizes lines of `length` x `inner` values along their first axis, from `in` to `out` [lines, taps, inner].
void resize_axis(std::span<uint8_t> out, std::span<const uint8_t> in, int64_t length, int64_t inner, const std::vector<Taps>& taps) {
    const int64_t lines = std::ssize(in) / (length * inner);
    uint8_t* to = out.data();
    for (int64_t l = 0; l < lines; ++l) {
        for (const Taps& t : taps) {
            const uint8_t* from = in.data() + (l * length + t.first) * inner;
            for (int64_t i = 0; i < inner; ++i) {
                int32_t sum = 1 << (kWeightBits - 1);
                for (int64_t k = 0; k < std::ssize(t.weights); ++k) sum += from[k * inner + i] * t.weights[static_cast<size_t>(k)];
                *to++ = static_cast<uint8_t>(std::min(sum >> kWeightBits, 255));
            }
        }
    }
}

/// Half rounded to even, as Python's round().
int64_t half(int64_t n) { return n / 2 + (n % 4 == 3 ? 1 : 0); }

Window window_of(int side, int short_side, int size, Crop crop) {
    const int64_t to = side == short_side ? size : int64_t{size} * side / short_side;
    return {.from = side, .to = to, .first = crop == Crop::centre ? half(to - size) : 0, .count = size};
}

std::vector<uint8_t> recoloured(const Picture& picture, int channels) {
    const size_t num_pixels = picture.pixels.size() / static_cast<size_t>(picture.channels);
    std::vector<uint8_t> out;
    out.reserve(num_pixels * static_cast<size_t>(channels));
    for (size_t p = 0; p < num_pixels; ++p) {
        if (channels == 3) {
            out.insert(out.end(), 3, picture.pixels[p]);
        } else {  // the weights times 2^16
            const uint8_t* rgb = &picture.pixels[3 * p];
            out.push_back(static_cast<uint8_t>((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16));
        }
    }
    return out;
}

}  // namespace

void fit(std::span<uint8_t> out, const Picture& picture, int channels, int size, Crop crop) {
    assert(picture.height > 0 && picture.width > 0 && (picture.channels == 1 || picture.channels == 3) && (channels == 1 || channels == 3));
    std::vector<uint8_t> own;
    std::span<const uint8_t> pixels = picture.pixels;
    if (channels != picture.channels) {
        own = recoloured(picture, channels);
        pixels = own;
    }

    const int short_side = std::min(picture.height, picture.width);
    const std::vector<Taps> columns = triangle_taps(window_of(picture.width, short_side, size, crop));
    std::vector<Taps> rows = triangle_taps(window_of(picture.height, short_side, size, crop));
    // Only rows that are read later: an image of one column may have millions.
    const int first = rows.front().first, num_rows = rows.back().end() - first;
    for (Taps& taps : rows) taps.first -= first;
    const int64_t row = int64_t{picture.width} * channels, narrow_row = int64_t{size} * channels;
    std::vector<uint8_t> narrow(static_cast<size_t>(num_rows * narrow_row));
    resize_axis(narrow, pixels.subspan(static_cast<size_t>(first * row), static_cast<size_t>(num_rows * row)), picture.width, channels,
                columns);
    resize_axis(out, narrow, num_rows, narrow_row, rows);
}

ImageSet fitted(const ImageSet& set, int channels, int size, Crop crop) {
    if (set.channels == channels && set.height == size && set.width == size) return set;
    ImageSet out = set;
    out.channels = channels;
    out.height = out.width = size;
    const auto image = static_cast<size_t>(set.height) * static_cast<size_t>(set.width) * static_cast<size_t>(set.channels);
    const auto fitted_image = static_cast<size_t>(size) * static_cast<size_t>(size) * static_cast<size_t>(channels);
    out.pixels.assign(static_cast<size_t>(set.count()) * fitted_image, 0);
    for (size_t i = 0; i < static_cast<size_t>(set.count()); ++i) {
        const Picture picture{
            .pixels = std::span(set.pixels).subspan(i * image, image), .height = set.height, .width = set.width, .channels = set.channels};
        fit(std::span(out.pixels).subspan(i * fitted_image, fitted_image), picture, channels, size, crop);
    }
    return out;
}

}  // namespace jem
