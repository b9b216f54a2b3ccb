// Vectors of 8 or 16 channels, f32 in registers, f32 or bf16 in memory, and code that is compiled for both.
#pragma once

#include <cstdint>
#include <type_traits>

#include "engine/device/cpu/instruction_sets.h"
#include "kernels/bf16.h"

namespace jem {

template <int Lanes>
struct VectorOf;
template <>
struct VectorOf<8> {
    using Type [[gnu::vector_size(32)]] = float;
    using Mask [[gnu::vector_size(32)]] = int32_t;
    using Bits [[gnu::vector_size(32)]] = uint32_t;
    using Half [[gnu::vector_size(16)]] = uint16_t;
};
template <>
struct VectorOf<16> {
    using Type [[gnu::vector_size(64)]] = float;
    using Mask [[gnu::vector_size(64)]] = int32_t;
    using Bits [[gnu::vector_size(64)]] = uint32_t;
    using Half [[gnu::vector_size(32)]] = uint16_t;
};
template <int Lanes>
using Vector = typename VectorOf<Lanes>::Type;
template <class V>
constexpr int kLanesOf = sizeof(V) / sizeof(float);

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

// bf16 is a float's upper half.
template <class V>
JEM_INLINE void load(V& v, const Bf16* from) {
    using Of = VectorOf<kLanesOf<V>>;
    using Unaligned [[gnu::may_alias, gnu::aligned(alignof(Bf16))]] = typename Of::Half;
    const auto wide = __builtin_convertvector(*reinterpret_cast<const Unaligned*>(from), typename Of::Bits);
    v = reinterpret_cast<V>(wide << 16);
}
// v is a bf16 already (round_to).
template <class V>
JEM_INLINE void store(Bf16* to, const V& v) {
    using Of = VectorOf<kLanesOf<V>>;
    using Unaligned [[gnu::may_alias, gnu::aligned(alignof(Bf16))]] = typename Of::Half;
    *reinterpret_cast<Unaligned*>(to) = __builtin_convertvector(reinterpret_cast<typename Of::Bits>(v) >> 16, typename Of::Half);
}
// As Bf16 rounds; f32 is what it is.
template <class A, class V>
JEM_INLINE void round_to(V& v) {
    if constexpr (std::is_same_v<A, Bf16>) {
        using Bits = typename VectorOf<kLanesOf<V>>::Bits;
        const Bits exact = reinterpret_cast<Bits>(v), rounded = exact + 0x7FFFu + (exact >> 16 & 1u), quiet = exact | 0x400000u;
        v = reinterpret_cast<V>((v == v ? rounded : quiet) & 0xFFFF0000u);
    }
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
