// Random numbers as a pure function of (seed, attempt, stream, iteration, step, element): nothing to save, nothing to order.
#pragma once

#include <Random123/philox.h>

#include <cmath>
#include <cstdint>

#include "kernels/qualifiers.h"
#include "kernels/state.h"

namespace jem {

// What a draw is for. Part of the counter, so that no two purposes share numbers; never renumber: checkpoints rely on it.
enum class RandomStream : uint32_t {
    labelled_order = 1,
    labelled_augment = 2,
    generative_order = 3,
    generative_augment = 4,
    input_noise = 5,
    buffer_index = 6,
    reinit_choice = 7,
    init_weights = 8,
    init_pixels = 9,
    sgld_noise = 10,
    parameters = 11,
    buffer_fill_weights = 12,
    buffer_fill_pixels = 13,
    held_out = 14,
    dropout = 15,
    evaluation_order = 16,
    attack_start = 17,
    made_images = 18,
    landscape = 19,
    feature_subsets = 20,
    damage = 21,
    metropolis = 22,
    chain_labels = 23,
    training_attack = 24,
    labelled = 25,
};

struct Random4 {
    uint32_t v[4];
};

// Philox 4x32-10 (Salmon et al. 2011).
JEM_HD inline Random4 random4(uint64_t seed, RandomStream stream, uint32_t iteration, uint32_t step, uint64_t element) {
    const r123::Philox4x32::ctr_type counter = {
        {static_cast<uint32_t>(element), static_cast<uint32_t>(element >> 32) ^ (static_cast<uint32_t>(stream) << 24), iteration, step}};
    const r123::Philox4x32::key_type key = {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
    const r123::Philox4x32::ctr_type out = r123::Philox4x32{}(counter, key);
    return {{out.v[0], out.v[1], out.v[2], out.v[3]}};
}

// Of the iteration and attempt that a state names. A run that goes back to an earlier state draws other numbers than before: its attempt is
// in the key (by an odd factor near 2^64 / golden ratio, so that no two of any practical count share one). Attempt 0 is the seed's own.
JEM_HD inline Random4 random4(uint64_t seed, RandomStream stream, const IterationState& state, uint32_t step, uint64_t element) {
    return random4(seed ^ state.attempt * 0x9E3779B97F4A7C15u, stream, state.iteration, step, element);
}

// In (0, 1), 23 bits: never 0, never 1 (with 24 the half would be rounded away, and the largest would be 1).
JEM_HD inline float uniform_of(uint32_t bits) { return (static_cast<float>(bits >> 9) + 0.5f) * 0x1p-23f; }

// Below n (n > 0) by multiply and shift; the bias is n / 2^32, under 2e-5 relative for any data set.
JEM_HD inline uint32_t index_of(uint32_t bits, uint32_t n) { return static_cast<uint32_t>((uint64_t{bits} * n) >> 32); }

// cos(2 pi u) and sin(2 pi u) for u in [0, 1), to 2e-7: an octant and two short polynomials. Library functions
// reduce any argument and use local memory on GPUs for it.
JEM_HD inline void unit_circle(float u, float& cosine, float& sine) {
    const float turn = u * 4.0f;
    const int quadrant = static_cast<int>(turn + 0.5f);
    const float r = (turn - static_cast<float>(quadrant)) * 1.57079632679f;  // [-pi/4, pi/4]
    const float r2 = r * r;
    const float c = 1.0f + r2 * (-0.5f + r2 * (4.16666667e-2f + r2 * (-1.38888889e-3f + r2 * 2.48015873e-5f)));
    const float s = r * (1.0f + r2 * (-1.66666667e-1f + r2 * (8.33333333e-3f + r2 * (-1.98412698e-4f + r2 * 2.75573192e-6f))));
    const bool swap = (quadrant & 1) != 0;
    const float a = swap ? s : c, b = swap ? c : s;
    cosine = ((quadrant + 1) & 2) != 0 ? -a : a;
    sine = (quadrant & 2) != 0 ? -b : b;
}

struct Normal4 {
    float v[4];
};

// Four draws of N(0, 1) by Box-Muller.
JEM_HD inline Normal4 normals_of(const Random4& r) {
    Normal4 out;
    float c, s;
    const float radius0 = std::sqrt(-2.0f * std::log(uniform_of(r.v[0])));
    unit_circle(static_cast<float>(r.v[1] >> 8) * 0x1p-24f, c, s);
    out.v[0] = radius0 * c;
    out.v[1] = radius0 * s;
    const float radius1 = std::sqrt(-2.0f * std::log(uniform_of(r.v[2])));
    unit_circle(static_cast<float>(r.v[3] >> 8) * 0x1p-24f, c, s);
    out.v[2] = radius1 * c;
    out.v[3] = radius1 * s;
    return out;
}

// Position i of a random order of 0..n-1 (a keyed bijection: Feistel network over the next power of four, walked until it
// lands below n). An epoch's order needs no table and no state. order = the epoch's number.
JEM_HD inline uint32_t shuffled(uint32_t i, uint32_t n, uint64_t seed, RandomStream stream, uint32_t order) {
    uint32_t half_bits = 1;
    while ((uint64_t{1} << (2 * half_bits)) < n) ++half_bits;
    const uint32_t mask = (1u << half_bits) - 1u;
    uint32_t x = i;
    do {
        uint32_t left = x >> half_bits, right = x & mask;
        for (uint32_t round = 0; round < 6; ++round) {
            const uint32_t mixed = left ^ (random4(seed, stream, order, round, right).v[0] & mask);
            left = right;
            right = mixed;
        }
        x = (left << half_bits) | right;
    } while (x >= n);
    return x;
}

}  // namespace jem
