// Vectors of 8 or 16 f32 channels, and code that is compiled for both.
#pragma once

#include <cstdint>

#include "engine/device/cpu/instruction_sets.h"

namespace jem {

template <int Lanes>
struct VectorOf;
template <>
struct VectorOf<8> {
    using Type [[gnu::vector_size(32)]] = float;
    using Mask [[gnu::vector_size(32)]] = int32_t;
};
template <>
struct VectorOf<16> {
    using Type [[gnu::vector_size(64)]] = float;
    using Mask [[gnu::vector_size(64)]] = int32_t;
};
template <int Lanes>
using Vector = typename VectorOf<Lanes>::Type;

// By reference, not by value: what registers a call would use depends on the instruction set. By a type without alignment, not by memcpy:
// g++ would copy arrays of vectors word by word, and wait for the words when it reads the vector.
template <class V>
JEM_INLINE void load(V& v, const float* from) {
    using Unaligned [[gnu::may_alias, gnu::aligned(alignof(float))]] = V;
    v = *reinterpret_cast<const Unaligned*>(from);
}
template <class V>
JEM_INLINE void store(float* to, const V& v) {
    using Unaligned [[gnu::may_alias, gnu::aligned(alignof(float))]] = V;
    *reinterpret_cast<Unaligned*>(to) = v;
}

// body(), compiled for the instruction set that so many lanes want.
template <class Body>
JEM_AVX512 void run_avx512(const Body& body) {
    body();
}
template <int Lanes, class Body>
void run(bool avx512, const Body& body) {
    if constexpr (Lanes == 16) {
        if (avx512) return run_avx512(body);
    }
    body();
}

}  // namespace jem
