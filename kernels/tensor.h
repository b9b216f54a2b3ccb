// Views of device memory: what an op is told about its operands.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>

namespace jem {

enum class DType : uint8_t { f32, f64, bf16, u8, i32 };

constexpr size_t size_of(DType type) {
    switch (type) {
        case DType::f32:
        case DType::i32:
            return 4;
        case DType::f64:
            return 8;
        case DType::bf16:
            return 2;
        case DType::u8:
            return 1;
    }
    return 0;
}

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
    static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
    static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<uint8_t> {
    static constexpr DType value = DType::u8;
};
template <>
struct DTypeOf<int32_t> {
    static constexpr DType value = DType::i32;
};

// Memory order of an activation, [planes, rows, block] with planes = N * blocks: element (plane, row, lane) lies at
// (plane * rows + row) * block + lane and belongs to channel (plane % blocks) * block + lane.
// block = C is NHWC, block = 16 is oneDNN's blocked layout, block = 1 is NCHW: one formula serves all.
struct Layout {
    int64_t planes = 0;
    int64_t rows = 0;    // H * W
    int64_t block = 1;   // channels that lie side by side
    int64_t blocks = 1;  // C / block

    constexpr int64_t count() const { return planes * rows * block; }
    constexpr int64_t channels() const { return blocks * block; }
    constexpr int64_t images() const { return planes / blocks; }
};

// A dense activation, [N, C/block, H*W, block]. Does not own its memory.
struct Tensor {
    void* data = nullptr;
    DType type = DType::f32;
    int64_t n = 0, c = 0, h = 0, w = 0;
    int64_t block = 1;  // divides c

    int64_t count() const { return n * c * h * w; }
    size_t bytes() const { return static_cast<size_t>(count()) * size_of(type); }
    Layout layout() const { return {n * (c / block), h * w, block, c / block}; }
    template <class T>
    T* as() const {
        assert(type == DTypeOf<T>::value);
        return static_cast<T*>(data);
    }
};

// The same values as one image of N * C channels: what is done to a channel is done to a channel of an image.
inline Tensor of_images(const Tensor& x) {
    Tensor view = x;
    view.n = x.n > 0 ? 1 : 0;
    view.c = x.n * x.c;
    return view;
}

// One-dimensional values: parameters, statistics, per-image numbers. Does not own its memory.
struct Array {
    void* data = nullptr;
    DType type = DType::f32;
    int64_t count = 0;

    size_t bytes() const { return static_cast<size_t>(count) * size_of(type); }
    Array slice(int64_t first, int64_t n) const {
        return {static_cast<std::byte*>(data) + static_cast<size_t>(first) * size_of(type), type, n};
    }
    template <class T>
    T* as() const {
        assert(count == 0 || type == DTypeOf<T>::value);
        return static_cast<T*>(data);
    }
};

}  // namespace jem
