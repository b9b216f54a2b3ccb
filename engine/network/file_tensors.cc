#include "engine/network/file_tensors.h"

#include <algorithm>
#include <stdexcept>

namespace jem {
namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 20;

// A tensor is a number of blocks [C, pixels]; without channels one of them is one value.
struct Blocks {
    int64_t channels = 1, pixels = 1;

    explicit Blocks(const std::vector<int64_t>& shape) {
        if (shape.size() < 4) return;
        const auto last = shape.end() - 3;
        channels = last[0];
        pixels = last[1] * last[2];
    }
    int64_t size() const { return channels * pixels; }
};

template <class T>
void download_piece(Device& device, Array array, const Blocks& blocks, int64_t first, std::span<T> out) {
    const int64_t begin = first / blocks.size(), end = (first + std::ssize(out) + blocks.size() - 1) / blocks.size();
    if (blocks.size() == 1) return device.download(out.data(), array.slice(first, std::ssize(out)).data, out.size_bytes());
    const Array whole = array.slice(begin * blocks.size(), (end - begin) * blocks.size());
    std::vector<T> values(static_cast<size_t>(whole.count)), block(static_cast<size_t>(blocks.size()));
    device.download(values.data(), whole.data, whole.bytes());
    for (int64_t b = begin; b < end; ++b) {
        const std::span<const T> own = std::span<const T>(values).subspan(static_cast<size_t>((b - begin) * blocks.size()), block.size());
        transpose(own, blocks.channels, std::span<T>(block));
        const int64_t from = std::max(first, b * blocks.size()), to = std::min(first + std::ssize(out), (b + 1) * blocks.size());
        std::copy(block.begin() + (from - b * blocks.size()), block.begin() + (to - b * blocks.size()), out.begin() + (from - first));
    }
}

template <class T>
FileTensor tensor_of_type(FileType type, Device& device, Array array, std::vector<int64_t> shape) {
    const Blocks blocks(shape);
    return {.type = type,
            .shape = std::move(shape),
            .num_bytes = static_cast<int64_t>(array.bytes()),
            .read = [&device, array, blocks](int64_t first, std::span<std::byte> out) {
                if (out.empty()) return;
                std::vector<T> values(out.size() / sizeof(T));
                download_piece(device, array, blocks, first / static_cast<int64_t>(sizeof(T)), std::span<T>(values));
                std::copy_n(std::as_bytes(std::span(values)).begin(), out.size(), out.begin());
            }};
}

template <class T>
void upload_as(Device& device, Array to, const FileTensor& from) {
    const Blocks blocks(from.shape);
    if (blocks.size() == 0) return;
    const int64_t at_once = std::max<int64_t>(1, kPieceBytes / static_cast<int64_t>(sizeof(T)) / blocks.size()) * blocks.size();
    std::vector<T> values(static_cast<size_t>(std::min(at_once, to.count))), ordered(values.size());
    for (int64_t first = 0; first < to.count; first += at_once) {
        const int64_t n = std::min(at_once, to.count - first);
        const std::span<T> piece = std::span(values).first(static_cast<size_t>(n));
        read_values(from, first, piece);
        for (int64_t b = 0; b < n; b += blocks.size()) {
            const auto block = static_cast<size_t>(blocks.size()), at = static_cast<size_t>(b);
            transpose(std::span<const T>(piece).subspan(at, block), blocks.pixels, std::span(ordered).subspan(at, block));
        }
        device.upload(to.slice(first, n).data, ordered.data(), static_cast<size_t>(n) * sizeof(T));
    }
}

}  // namespace

FileTensor tensor_on(Device& device, Array array, std::vector<int64_t> shape) {
    return array.type == DType::f64 ? tensor_of_type<double>(FileType::f64, device, array, std::move(shape))
                                    : tensor_of_type<float>(FileType::f32, device, array, std::move(shape));
}

void upload_tensor(Device& device, Array to, const FileTensor& from) {
    if (from.num_elements() != to.count) throw std::logic_error("A tensor of another size than the array that it was to fill.");
    return to.type == DType::f64 ? upload_as<double>(device, to, from) : upload_as<float>(device, to, from);
}

}  // namespace jem
