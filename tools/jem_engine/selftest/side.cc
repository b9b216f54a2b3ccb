#include "tools/jem_engine/selftest/side.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "kernels/bf16.h"

namespace jem::selftest {
namespace {

constexpr size_t kGuardBytes = 256;  // keeps the alignment that ops may rely on
constexpr std::byte kGuard{0xC3};

double in_bf16(double value) { return static_cast<float>(Bf16(static_cast<float>(value))); }

double number(const std::byte* bytes, DType type, int64_t i) {
    const std::byte* from = bytes + static_cast<size_t>(i) * size_of(type);
    const auto load = [&](auto v) {
        std::memcpy(&v, from, sizeof v);
        return v;
    };
    if (type == DType::f64) return load(double{});
    if (type == DType::f32) return load(float{});
    if (type == DType::bf16) return static_cast<float>(load(Bf16{}));
    if (type == DType::i32) return load(int32_t{});
    return load(uint8_t{});
}

template <class Visit>
void for_nchw(const Tensor& t, Visit visit) {
    for (int64_t n = 0; n < t.n; ++n)
        for (int64_t c = 0; c < t.c; ++c)
            for (int64_t r = 0; r < t.h * t.w; ++r)
                visit(static_cast<size_t>(((n * (t.c / t.block) + c / t.block) * t.h * t.w + r) * t.block + c % t.block));
}

}  // namespace

Tensor Side::activation(const Extent& e, const Values& nchw) {
    return tensor(e, device_.activation_type(), device_.channel_block(e.c), nchw);
}

Tensor Side::flat(const Extent& e, const Values& nchw) { return tensor(e, real_type(), e.c, nchw); }

Array Side::activations(const Values& values) {
    Values rounded = values;
    if (narrow_)
        for (double& v : rounded) v = in_bf16(v);
    return put(rounded, device_.activation_type());
}

Values Side::read(const Array& a) {
    device_.synchronize();
    std::vector<std::byte> bytes(a.bytes());
    device_.download(bytes.data(), a.data, bytes.size());
    Values out;
    for (int64_t i = 0; i < a.count; ++i) out.push_back(number(bytes.data(), a.type, i));
    return out;
}

Values Side::read(const Tensor& t) {
    const Values memory = read(Array{t.data, t.type, t.count()});
    Values out;
    for_nchw(t, [&](size_t at) { out.push_back(memory[at]); });
    return out;
}

IterationState Side::read(const IterationState* from) {
    IterationState value;
    device_.synchronize();
    device_.download(&value, from, sizeof value);
    return value;
}

void Side::check_guards() {
    std::vector<std::byte> guard(kGuardBytes);
    for (const Block& b : blocks_)
        for (const size_t at : {size_t{0}, kGuardBytes + b.bytes}) {
            device_.download(guard.data(), b.buffer->data() + at, kGuardBytes);
            if (!std::all_of(guard.begin(), guard.end(), [](std::byte g) { return g == kGuard; }))
                throw std::runtime_error(
                    fmt::format("something wrote {} an array of {} bytes", at == 0 ? "in front of" : "behind", b.bytes));
        }
}

void* Side::raw(const void* values, size_t bytes) {
    blocks_.push_back({device_.allocate(bytes + 2 * kGuardBytes), bytes});
    std::byte* p = blocks_.back().buffer->data();
    const std::vector<std::byte> guard(kGuardBytes, kGuard), nothing(values == nullptr ? bytes : 0, std::byte{0xFF});
    device_.upload(p, guard.data(), kGuardBytes);
    device_.upload(p + kGuardBytes, values != nullptr ? values : nothing.data(), bytes);
    device_.upload(p + kGuardBytes + bytes, guard.data(), kGuardBytes);
    return p + kGuardBytes;
}

Array Side::put(const Values& values, DType type) {
    std::vector<std::byte> bytes(values.size() * size_of(type));
    for (size_t i = 0; i < values.size(); ++i) {
        std::byte* to = bytes.data() + i * size_of(type);
        const auto store = [&](auto v) { std::memcpy(to, &v, sizeof v); };
        if (type == DType::f64)
            store(values[i]);
        else if (type == DType::bf16)
            store(Bf16(static_cast<float>(values[i])));
        else
            store(static_cast<float>(values[i]));
    }
    return {raw(bytes.data(), bytes.size()), type, static_cast<int64_t>(values.size())};
}

Tensor Side::tensor(const Extent& e, DType type, int64_t block, const Values& nchw) {
    Tensor t = {nullptr, type, e.n, e.c, e.h, e.w, block};
    Values memory(nchw.size());
    size_t i = 0;
    for_nchw(t, [&](size_t at) { memory[at] = narrow_ ? in_bf16(nchw[i++]) : nchw[i++]; });
    t.data = put(memory, type).data;
    return t;
}

}  // namespace jem::selftest
