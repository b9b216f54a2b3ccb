// Arrays of a device as tensors of files, piece by piece. Where a tensor has four dimensions or more, its last three are [C, H, W] in a
// file and [H, W, C] on the device: convolution weights, and images.
#pragma once

#include <span>
#include <vector>

#include "engine/device/device.h"
#include "engine/files/safetensors.h"

namespace jem {

// The array, f32 or f64, as a tensor of that shape. It is downloaded when it is read: until then it must stay, and is not copied.
FileTensor tensor_on(Device& device, Array array, std::vector<int64_t> shape);
// Into an array of as many elements, f32 or f64, whatever the tensor's own floating-point type.
void upload_tensor(Device& device, Array to, const FileTensor& from);

// to[column, row] = from[row, column]
template <class T>
void transpose(std::span<const T> from, int64_t columns, std::span<T> to) {
    const int64_t rows = std::ssize(from) / columns;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) to[static_cast<size_t>(c * rows + r)] = from[static_cast<size_t>(r * columns + c)];
}

}  // namespace jem
