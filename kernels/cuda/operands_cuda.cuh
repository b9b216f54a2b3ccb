// Operands as CUDA threads move them: 16 bytes at a time, with 32-bit indices.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/operands.h"

namespace jem::cuda {

// Where element i of an operand lies: at data[i]; one value a channel, at data[c].
template <class O>
inline constexpr bool kDense = false;
template <class T>
inline constexpr bool kDense<In<T>> = true;
template <class T>
inline constexpr bool kDense<Out<T>> = true;
template <class O>
inline constexpr bool kOfChannel = false;
template <class T>
inline constexpr bool kOfChannel<PerChannel<T>> = true;

// How many of an operand's elements make 16 bytes.
template <class O>
inline constexpr int kPackOf = kDense<O> ? 16 / sizeof(Element<O>) : 1;

// A Layout of less than 2^31 elements, so that a channel costs 32-bit divisions (64-bit ones would cost more than the memory).
struct Shape {
    uint32_t count, plane, rows, block, blocks, channels;

    __device__ uint32_t channel(uint32_t i) const { return blocks == 1 ? i % block : i / plane % blocks * block + i % block; }
    // Element of row r (counted over the images) and channel c.
    __device__ uint32_t index(uint32_t r, uint32_t c) const {
        return blocks == 1 ? r * block + c : (r / rows * blocks + c / block) * plane + r % rows * block + c % block;
    }
};

// N neighbouring elements of an operand in registers, moved 16 bytes at a time.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
    T v[N];
};
template <int N, class O>
__device__ Pack<Element<O>, N> load(const O& o, uint32_t i, uint32_t c) {
    using P = Pack<Element<O>, N>;
    if constexpr (kDense<O>) {
        return *reinterpret_cast<const P*>(o.data + i);  // an output's too: a functor may read it, else the load is dropped
    } else if constexpr (kOfChannel<O>) {
        return *reinterpret_cast<const P*>(o.data + c);
    } else {
        static_assert(std::is_same_v<O, Zero<Element<O>>>);
        return P{};
    }
}
template <int N, class O>
__device__ void store(const O& o, uint32_t i, const Pack<Element<O>, N>& pack) {
    if constexpr (std::is_same_v<O, Out<Element<O>>>) *reinterpret_cast<Pack<Element<O>, N>*>(o.data + i) = pack;
}

// An operand of N neighbouring channels, from c on, going down the rows: what is one value a channel is read once.
template <int N, class O>
struct Column {
    Pack<Element<O>, N> values;
    __device__ Column(const O& o, const Shape&, uint32_t c) : values(load<N>(o, 0, c)) {}
    __device__ Pack<Element<O>, N> at(uint32_t) const { return values; }
};
template <int N, class T>
struct Column<N, FirstOfChannel<T>> {
    Pack<T, N> values;
    __device__ Column(const FirstOfChannel<T>& o, const Shape& s, uint32_t c)
        : values(*reinterpret_cast<const Pack<T, N>*>(o.data + s.index(0, c))) {}
    __device__ Pack<T, N> at(uint32_t) const { return values; }
};
template <int N, class T>
struct Column<N, In<T>> {
    const T* data;
    __device__ Column(const In<T>& o, const Shape&, uint32_t) : data(o.data) {}
    __device__ Pack<T, N> at(uint32_t i) const { return *reinterpret_cast<const Pack<T, N>*>(data + i); }
};

}  // namespace jem::cuda
