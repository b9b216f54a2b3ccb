// bf16 where the compiler has no such type: a float's upper half. Numbers are computed with as float.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/tensor.h"

namespace jem {

class Bf16 {
public:
    Bf16() = default;
    // Rounds to nearest even; a NaN stays one.
    explicit Bf16(float value) {
        const uint32_t exact = std::bit_cast<uint32_t>(value);
        const uint32_t rounded = exact + 0x7FFFu + (exact >> 16 & 1u);
        bits_ = static_cast<uint16_t>((value == value ? rounded : exact | 0x400000u) >> 16);
    }
    Bf16& operator=(float value) { return *this = Bf16(value); }
    operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits_) << 16); }

private:
    uint16_t bits_;
};
static_assert(std::is_trivially_copyable_v<Bf16> && sizeof(Bf16) == 2);

template <>
struct DTypeOf<Bf16> {
    static constexpr DType value = DType::bf16;
};

}  // namespace jem
