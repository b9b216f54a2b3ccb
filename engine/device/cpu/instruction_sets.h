// Code that is compiled for AVX2, as the whole program, and once more for AVX-512; which of the two runs is chosen when the program runs.
#pragma once

namespace jem {

// A function for AVX-512, which may take in others that are not. Same architecture and tuning, more instructions: otherwise g++ would not
// inline the functors.
#define JEM_AVX512 [[gnu::target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]]
// What becomes part of its caller, and so of the caller's instruction set; the second form follows a lambda's parameters.
#define JEM_INLINE [[gnu::always_inline]] inline
#define JEM_INLINE_LAMBDA __attribute__((always_inline))

inline bool cpu_has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace jem
