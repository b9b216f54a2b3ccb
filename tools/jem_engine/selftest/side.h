// One of the two devices that are compared, with a case's memory on it, and the numbers that go in and come out.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/device/device.h"

namespace jem::selftest {

using Values = std::vector<double>;
using Integers = std::vector<int32_t>;

// What a difference may be, relative to each value and to its tensor's rms.
struct Bound {
    double of_value = 0, of_rms = 0;
};
constexpr Bound kExact = {};

// Numbers that are the same on every machine (SplitMix64); every one is an f32.
class Numbers {
public:
    explicit Numbers(uint64_t seed) : state_(seed) {}

    uint64_t bits() {
        uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    double one(double low, double high) { return static_cast<float>(low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53); }
    Values many(int64_t count, double low, double high) {
        Values out(static_cast<size_t>(count));
        for (double& v : out) v = one(low, high);
        return out;
    }
    int32_t index(int64_t n) { return static_cast<int32_t>(bits() % static_cast<uint64_t>(n)); }

private:
    uint64_t state_;
};

struct Extent {
    int64_t n, c, h, w;
    int64_t count() const { return n * c * h * w; }
};

// One of the two devices with a case's memory on it. Values go in and come out in NCHW order, whatever the device's layout;
// in front of and behind every array lie guard bytes.
class Side {
public:
    // narrow: activations hold bf16, on both sides the same numbers
    Side(Device& device, bool narrow) : device_(device), narrow_(narrow) {}

    Device& device() { return device_; }
    Ops& ops() { return device_.ops(); }
    DType real_type() const { return device_.real_type(); }

    Array real(const Values& values) { return put(values, real_type()); }
    // All bytes 0xFF, a NaN in every type: what an op leaves out shows.
    Array unwritten(int64_t count) { return {raw(nullptr, static_cast<size_t>(count) * size_of(real_type())), real_type(), count}; }
    Array integers(const Integers& values) {
        return {raw(values.data(), values.size() * sizeof(int32_t)), DType::i32, static_cast<int64_t>(values.size())};
    }
    Array bytes(const std::vector<uint8_t>& values) {
        return {raw(values.data(), values.size()), DType::u8, static_cast<int64_t>(values.size())};
    }
    IterationState* state(const IterationState& value = {}) { return static_cast<IterationState*>(raw(&value, sizeof value)); }
    std::byte* scratch(size_t bytes) { return static_cast<std::byte*>(raw(nullptr, bytes)); }

    // A hidden activation in the device's own type and layout; images and logits are R with block = C.
    Tensor activation(const Extent& e, const Values& nchw);
    Tensor activation(const Extent& e) { return activation(e, Values(static_cast<size_t>(e.count()), std::nan(""))); }
    Tensor flat(const Extent& e, const Values& nchw);
    Tensor flat(const Extent& e) { return flat(e, Values(static_cast<size_t>(e.count()), std::nan(""))); }
    // Values in the type of hidden activations.
    Array activations(const Values& values);

    Values read(const Array& a);
    Values read(const Tensor& t);
    IterationState read(const IterationState* from);

    // Throws if anything wrote beside an array.
    void check_guards();

private:
    struct Block {
        std::unique_ptr<Buffer> buffer;
        size_t bytes;
    };

    void* raw(const void* values, size_t bytes);
    Array put(const Values& values, DType type);
    Tensor tensor(const Extent& e, DType type, int64_t block, const Values& nchw);

    Device& device_;
    bool narrow_;
    std::vector<Block> blocks_;
};

// What a case leaves behind, to be compared.
struct Output {
    std::string what;
    Values values;
    Bound bound;
};

using Outputs = std::vector<Output>;

}  // namespace jem::selftest
