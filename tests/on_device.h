// A test's memory on a device, and the devices that every op is tested on.
#pragma once

#include <doctest/doctest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/device/device.h"
#include "tests/check.h"
#ifdef JEM_HAS_CUDA
#include "engine/device/cuda/cuda_device.h"
#include "tests/temp_folder.h"
#endif

namespace jem {

#ifdef JEM_HAS_CUDA
// A GPU whose convolutions are timed once for all tests of this process: each fused one takes cuDNN a second to compile.
inline std::unique_ptr<Device> make_test_gpu() {
    static const TempFolder folder;
    return make_cuda_device({.plan_cache = (folder.path() / "convolutions.json").string()});
}
#endif

// Sizes of an activation, [N, C/block, H*W, block] in memory.
struct Extent {
    int64_t n = 1, c = 1, h = 1, w = 1, block = 1;

    int64_t rows() const { return h * w; }
    int64_t count() const { return n * c * h * w; }
    // Place in memory of (image, channel, row * w + column): written from the definition of the layout, not shared with the engine.
    size_t at(int64_t image, int64_t channel, int64_t row) const {
        const int64_t group = channel / block, lane = channel - group * block;
        return static_cast<size_t>(lane + block * (row + rows() * (group + c / block * image)));
    }
    std::string text() const {
        return "N " + std::to_string(n) + ", C " + std::to_string(c) + ", " + std::to_string(h) + "x" + std::to_string(w) + ", block " +
               std::to_string(block);
    }
};

// Arrays, tensors and states that live on a device as long as this object. Values go in and come out as doubles in NCHW order
// or flat; behind each allocation lie guard bytes, looked at in the end.
class OnDevice {
public:
    explicit OnDevice(Device& device) : device_(device) {}
    OnDevice(const OnDevice&) = delete;  // its arrays point into what it owns
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice() {
        for (const Block& b : blocks_) {
            std::vector<std::byte> guard(kGuardBytes);
            device_.download(guard.data(), b.buffer->data() + b.bytes, kGuardBytes);
            for (const std::byte found : guard)
                if (found != kGuard) {
                    CHECK_MESSAGE(false, "something wrote past the end of an array of ", b.bytes, " bytes");
                    break;
                }
        }
    }

    Device& device() const { return device_; }
    Ops& ops() const { return device_.ops(); }
    bool f64() const { return device_.real_type() == DType::f64; }
    // Half of the distance between 1 and the next number: what one rounding costs at most.
    double rounding() const { return f64() ? 0x1p-53 : 0x1p-24; }
    // n roundings of values as large as `magnitude`.
    Tolerance roundings(double n, double magnitude = 1) const { return {n * rounding() * magnitude, n * rounding()}; }

    void* raw(const void* values, size_t bytes) {
        blocks_.push_back({device_.allocate(bytes + kGuardBytes), bytes});
        std::byte* p = blocks_.back().buffer->data();
        const std::vector<std::byte> guard(kGuardBytes, kGuard);
        if (values != nullptr) device_.upload(p, values, bytes);
        device_.upload(p + bytes, guard.data(), kGuardBytes);
        return p;
    }
    Array real(const Values& values) {
        const Array a{raw(nullptr, values.size() * size_of(device_.real_type())), device_.real_type(), static_cast<int64_t>(values.size())};
        write(a, values);
        return a;
    }
    // Filled with NaN: what is not overwritten shows.
    Array unwritten(int64_t count) { return real(Values(static_cast<size_t>(count), std::nan(""))); }
    Array integers(const std::vector<int32_t>& values) {
        return {raw(values.data(), values.size() * 4), DType::i32, static_cast<int64_t>(values.size())};
    }
    Array bytes(const std::vector<uint8_t>& values) {
        return {raw(values.data(), values.size()), DType::u8, static_cast<int64_t>(values.size())};
    }
    // values: NCHW
    Tensor tensor(const Extent& e, const Values& values) {
        const Array memory = real(in_memory_order(e, values));
        return {memory.data, memory.type, e.n, e.c, e.h, e.w, e.block};
    }
    Tensor unwritten(const Extent& e) { return tensor(e, Values(static_cast<size_t>(e.count()), std::nan(""))); }
    IterationState* state(const IterationState& value = {}) { return static_cast<IterationState*>(raw(&value, sizeof value)); }

    void write(const Array& array, const Values& values) {
        if (array.type == DType::f64) return device_.upload(array.data, values.data(), array.bytes());
        const std::vector<float> narrow(values.begin(), values.end());
        device_.upload(array.data, narrow.data(), array.bytes());
    }
    void write(const Tensor& t, const Values& values) {
        write(Array{t.data, t.type, t.count()}, in_memory_order({t.n, t.c, t.h, t.w, t.block}, values));
    }
    void write(IterationState* to, const IterationState& value) { device_.upload(to, &value, sizeof value); }

    Values read(const Array& array) {
        device_.synchronize();
        if (array.type == DType::f64) return fetch<double>(array);
        if (array.type == DType::i32) return fetch<int32_t>(array);
        return fetch<float>(array);
    }
    Values read(const Tensor& t) {
        const Values flat = read(Array{t.data, t.type, t.count()});
        const Extent e{t.n, t.c, t.h, t.w, t.block};
        Values out;
        out.reserve(flat.size());
        for (int64_t n = 0; n < e.n; ++n)
            for (int64_t c = 0; c < e.c; ++c)
                for (int64_t r = 0; r < e.rows(); ++r) out.push_back(flat[e.at(n, c, r)]);
        return out;
    }
    IterationState read(const IterationState* from) {
        IterationState value;
        device_.synchronize();
        device_.download(&value, from, sizeof value);
        return value;
    }
    template <class T>
    std::vector<T> read_as(const void* from, int64_t count) {
        std::vector<T> out(static_cast<size_t>(count));
        device_.synchronize();
        device_.download(out.data(), from, out.size() * sizeof(T));
        return out;
    }

private:
    static constexpr size_t kGuardBytes = 64;
    static constexpr std::byte kGuard{0xC3};
    struct Block {
        std::unique_ptr<Buffer> buffer;
        size_t bytes;
    };

    static Values in_memory_order(const Extent& e, const Values& nchw) {
        REQUIRE(static_cast<int64_t>(nchw.size()) == e.count());
        Values out(nchw.size());
        size_t i = 0;
        for (int64_t n = 0; n < e.n; ++n)
            for (int64_t c = 0; c < e.c; ++c)
                for (int64_t r = 0; r < e.rows(); ++r) out[e.at(n, c, r)] = nchw[i++];
        return out;
    }
    template <class T>
    Values fetch(const Array& array) {
        const std::vector<T> values = read_as<T>(array.data, array.count);
        return Values(values.begin(), values.end());
    }

    Device& device_;
    std::vector<Block> blocks_;
};

// Runs the test on the CPU (f32) and on the reference device (f32 and f64), each time with memory of its own.
inline void on_every_device(const std::function<void(OnDevice&)>& test) {
    const auto run = [&](std::unique_ptr<Device> device) {
        INFO("device: " << device->name() << ", " << std::string(device->real_type() == DType::f64 ? "f64" : "f32"));
        OnDevice memory(*device);
        test(memory);
    };
    run(make_cpu_device({.threads = 2}));
    run(make_reference_device(DType::f32));
    run(make_reference_device(DType::f64));
#ifdef JEM_HAS_CUDA
    std::string why;
    if (!visible_gpus(why).empty()) run(make_test_gpu());
#endif
}

// Channel c of value i in NCHW order.
inline size_t channel_of(const Extent& e, size_t i) { return i / static_cast<size_t>(e.rows()) % static_cast<size_t>(e.c); }

}  // namespace jem
