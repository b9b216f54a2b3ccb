// Numbers by a formula that the scripts in tests/golden share (make_golden.py: uniforms).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/files/safetensors.h"

namespace jem {

inline uint64_t splitmix64(uint64_t z) {
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

inline uint64_t fnv1a64(const std::string& text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    return hash;
}

// u(seed, name, e) in [0, 1)
class Uniforms {
public:
    Uniforms(uint64_t seed, const std::string& name) : base_(splitmix64(seed ^ fnv1a64(name))) {}
    double operator()(uint64_t element) const { return static_cast<double>(splitmix64(base_ + element) >> 11) * 0x1p-53; }

private:
    uint64_t base_;
};

// formula(u) of each element, as f32.
template <class Formula>
FileTensor formula_tensor(uint64_t seed, const std::string& name, const std::vector<int64_t>& shape, Formula formula) {
    int64_t count = 1;
    for (const int64_t d : shape) count *= d;
    const Uniforms u(seed, name);
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(formula(u(i)));
    return make_file_tensor(std::span<const float>(values), shape);
}

}  // namespace jem
