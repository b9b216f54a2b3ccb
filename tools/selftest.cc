// jem_engine selftest: on the user's own device every op, every kind of convolution and one training iteration, against the reference
// device in f64. Both run the same formulas (kernels/), so this finds what compilers, libraries, memory, layouts and recording
// get wrong on this machine; that the formulas are right is for the tests to show.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "data/input_error.h"
#include "engine/iteration.h"
#include "engine/step.h"
#include "tools/options.h"

namespace jem {
namespace {

using Values = std::vector<double>;
using Integers = std::vector<int32_t>;

// What a difference may be, relative to each value and to its tensor's rms.
struct Bound {
    double of_value = 0, of_rms = 0;
};
constexpr Bound kExact = {};

// Limits by precision. f32: elements err by a few roundings of 6e-8; sums and products of up to some thousand terms
// (convolutions 576, batch statistics 572) by tens of them; Winograd by 1e-5 of the rms (device.h), at most ten times that.
// tf32 rounds the factors of convolutions to 5e-4, bf16 every activation to 4e-3.
struct Limits {
    Bound element, sum, scalar, convolution, winograd;
    // One iteration. Logits, losses and statistics are tight. A LeakyReLU input that falls on its kink's other side changes single
    // gradients by per cents, so that gradients and what follows from them are judged by their norms (behaviour.md).
    double logits, statistics, samples, gradients;
};

Limits limits_of(const std::string& precision) {
    Limits f32 = {.element = {2e-6, 1e-6},
                  .sum = {2e-6, 1e-5},
                  .scalar = {2e-6, 0},
                  .convolution = {0, 2e-5},
                  .winograd = {0, 1e-4},
                  .logits = 5e-5,
                  .statistics = 5e-5,
                  .samples = 1e-2,
                  .gradients = 5e-2};
    if (precision == "f32" || precision == "f64") return f32;
    f32.convolution = f32.winograd = {0, 5e-3};
    f32.logits = f32.statistics = 1e-2;
    f32.samples = 0.2;
    f32.gradients = 0.5;
    if (precision == "tf32") return f32;
    f32.element = {1e-2, 1e-3};
    f32.sum = {1e-2, 1e-2};
    f32.convolution = f32.winograd = {1e-2, 1e-2};
    f32.logits = f32.statistics = 0.1;
    f32.samples = 0.5;
    f32.gradients = 2;
    return f32;
}

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

// bf16 <-> numbers, rounded to nearest even.
uint16_t bf16_of(double value) {
    const auto narrow = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &narrow, sizeof bits);
    if (std::isnan(narrow)) return 0x7FC0;
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
double from_bf16(uint16_t half) {
    const uint32_t bits = uint32_t{half} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

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
    Tensor activation(const Extent& e, const Values& nchw) {
        return tensor(e, device_.activation_type(), device_.channel_block(e.c), nchw);
    }
    Tensor activation(const Extent& e) { return activation(e, Values(static_cast<size_t>(e.count()), std::nan(""))); }
    Tensor flat(const Extent& e, const Values& nchw) { return tensor(e, real_type(), e.c, nchw); }
    Tensor flat(const Extent& e) { return flat(e, Values(static_cast<size_t>(e.count()), std::nan(""))); }

    Values read(const Array& a) {
        device_.synchronize();
        std::vector<std::byte> bytes(a.bytes());
        device_.download(bytes.data(), a.data, bytes.size());
        Values out;
        for (int64_t i = 0; i < a.count; ++i) out.push_back(number(bytes.data(), a.type, i));
        return out;
    }
    Values read(const Tensor& t) {
        const Values memory = read(Array{t.data, t.type, t.count()});
        Values out;
        for_nchw(t, [&](size_t at) { out.push_back(memory[at]); });
        return out;
    }
    IterationState read(const IterationState* from) {
        IterationState value;
        device_.synchronize();
        device_.download(&value, from, sizeof value);
        return value;
    }

    void check_guards() {
        std::vector<std::byte> guard(kGuardBytes);
        for (const Block& b : blocks_)
            for (const size_t at : {size_t{0}, kGuardBytes + b.bytes}) {
                device_.download(guard.data(), b.buffer->data() + at, kGuardBytes);
                if (!std::all_of(guard.begin(), guard.end(), [](std::byte g) { return g == kGuard; }))
                    throw std::runtime_error(
                        fmt::format("something wrote {} an array of {} bytes", at == 0 ? "in front of" : "behind", b.bytes));
            }
    }

private:
    static constexpr size_t kGuardBytes = 256;  // keeps the alignment that ops may rely on
    static constexpr std::byte kGuard{0xC3};
    struct Block {
        std::unique_ptr<Buffer> buffer;
        size_t bytes;
    };

    void* raw(const void* values, size_t bytes) {
        blocks_.push_back({device_.allocate(bytes + 2 * kGuardBytes), bytes});
        std::byte* p = blocks_.back().buffer->data();
        const std::vector<std::byte> guard(kGuardBytes, kGuard), nothing(values == nullptr ? bytes : 0, std::byte{0xFF});
        device_.upload(p, guard.data(), kGuardBytes);
        device_.upload(p + kGuardBytes, values != nullptr ? values : nothing.data(), bytes);
        device_.upload(p + kGuardBytes + bytes, guard.data(), kGuardBytes);
        return p + kGuardBytes;
    }
    Array put(const Values& values, DType type) {
        std::vector<std::byte> bytes(values.size() * size_of(type));
        for (size_t i = 0; i < values.size(); ++i) {
            std::byte* to = bytes.data() + i * size_of(type);
            const auto store = [&](auto v) { std::memcpy(to, &v, sizeof v); };
            if (type == DType::f64)
                store(values[i]);
            else if (type == DType::bf16)
                store(bf16_of(values[i]));
            else
                store(static_cast<float>(values[i]));
        }
        return {raw(bytes.data(), bytes.size()), type, static_cast<int64_t>(values.size())};
    }
    static double number(const std::byte* bytes, DType type, int64_t i) {
        const std::byte* from = bytes + static_cast<size_t>(i) * size_of(type);
        const auto load = [&](auto v) {
            std::memcpy(&v, from, sizeof v);
            return v;
        };
        if (type == DType::f64) return load(double{});
        if (type == DType::f32) return load(float{});
        if (type == DType::bf16) return from_bf16(load(uint16_t{}));
        if (type == DType::i32) return load(int32_t{});
        return load(uint8_t{});
    }
    template <class Visit>
    static void for_nchw(const Tensor& t, Visit visit) {
        for (int64_t n = 0; n < t.n; ++n)
            for (int64_t c = 0; c < t.c; ++c)
                for (int64_t r = 0; r < t.h * t.w; ++r)
                    visit(static_cast<size_t>(((n * (t.c / t.block) + c / t.block) * t.h * t.w + r) * t.block + c % t.block));
    }
    Tensor tensor(const Extent& e, DType type, int64_t block, const Values& nchw) {
        Tensor t = {nullptr, type, e.n, e.c, e.h, e.w, block};
        Values memory(nchw.size());
        size_t i = 0;
        for_nchw(t, [&](size_t at) { memory[at] = narrow_ ? from_bf16(bf16_of(nchw[i++])) : nchw[i++]; });
        t.data = put(memory, type).data;
        return t;
    }

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

struct Case {
    std::string name;
    std::function<std::vector<Output>(Side&)> run;
};

struct Finding {
    std::string name;
    bool ok = true;
    double max_error = 0;  // relative to the tensor's rms
    std::string detail;    // of a failure
};

double rms(const Values& v) {
    double square = 0;
    for (const double x : v) square += std::isfinite(x) ? x * x : 0;
    return v.empty() ? 0 : std::sqrt(square / static_cast<double>(v.size()));
}

void compare(Finding& f, const Output& got, const Output& want) {
    const double scale = rms(want.values);
    if (got.values.size() != want.values.size()) {
        f.ok = false;
        f.detail = fmt::format("{}: {} values, want {}", want.what, got.values.size(), want.values.size());
        return;
    }
    for (size_t i = 0; i < want.values.size(); ++i) {
        const double g = got.values[i], w = want.values[i];
        if (g == w || (std::isnan(g) && std::isnan(w))) continue;
        const double error = std::fabs(g - w);
        if (scale > 0) f.max_error = std::max(f.max_error, error / scale);
        if (error <= want.bound.of_value * std::fabs(w) + want.bound.of_rms * scale || !f.ok) continue;  // a NaN is not <=
        f.ok = false;
        f.detail = fmt::format("{}[{}]: got {:.9g}, want {:.9g}", want.what, i, g, w);
    }
}

// Ops --------------------------------------------------------------------------------------------------------------------------

// Blocked and unblocked channels, odd sizes, one value a channel, and more elements than one thread's share.
constexpr Extent kExtents[] = {{3, 48, 5, 3}, {2, 5, 1, 7}, {4, 32, 13, 11}, {1, 16, 1, 1}};

struct NormNumbers {
    Values x, d_y, residual, mean, inv_std, scale, beta, gamma, a, b, running_mean, running_var;
};

NormNumbers norm_numbers(const Extent& e) {
    Numbers random(static_cast<uint64_t>(e.count()));
    NormNumbers v = {.x = random.many(e.count(), -2, 2),
                     .d_y = random.many(e.count(), -1, 1),
                     .residual = random.many(e.count(), -1, 1),
                     .mean = random.many(e.c, -0.5, 0.5),
                     .inv_std = random.many(e.c, 0.5, 2),
                     .scale = random.many(e.c, 0.3, 1.5),
                     .beta = random.many(e.c, -0.5, 0.5),
                     .gamma = random.many(e.c, 0.5, 1.5),
                     .a = random.many(e.c, -0.5, 0.5),
                     .b = random.many(e.c, -0.5, 0.5),
                     .running_mean = random.many(e.c, -1, 1),
                     .running_var = random.many(e.c, 0.5, 2)};
    // Away from the kinks of leaky(x) and of leaky(norm(x)), which rounding might cross.
    for (int64_t i = 0; i < e.count(); ++i) {
        double& x = v.x[static_cast<size_t>(i)];
        const auto c = static_cast<size_t>(i / (e.h * e.w) % e.c);
        while (std::fabs(x) < 0.05 || std::fabs((x - v.mean[c]) * v.scale[c] + v.beta[c]) < 0.05) x = random.one(-2, 2);
    }
    return v;
}

NormCoefficients coefficients(Side& s, const NormNumbers& v) {
    return {.mean = s.real(v.mean),
            .inv_std = s.real(v.inv_std),
            .scale = s.real(v.scale),
            .beta = s.real(v.beta),
            .a = s.real(v.a),
            .b = s.real(v.b)};
}

using Outputs = std::vector<Output>;
using OnExtent = std::function<void(Outputs&, Side&, const Extent&, const NormNumbers&)>;

std::vector<Output> on_extents(Side& s, const OnExtent& run) {
    Outputs out;
    for (const Extent& e : kExtents) {
        const size_t first = out.size();
        run(out, s, e, norm_numbers(e));
        for (size_t i = first; i < out.size(); ++i) out[i].what += fmt::format(" of [{}, {}, {}, {}]", e.n, e.c, e.h, e.w);
    }
    return out;
}

void add_norm_cases(std::vector<Case>& cases, const Limits& limits) {
    const auto add = [&](const char* name, OnExtent run) { cases.push_back({name, [run](Side& s) { return on_extents(s, run); }}); };
    const Bound element = limits.element, sum = limits.sum;

    add("batch_norm_statistics", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor x = s.activation(e, v.x);
        IterationState diverged;
        diverged.diverged = 1;
        const auto run = [&](const char* how, RunningStatistics running, const IterationState& state) {
            const NormCoefficients to = {.mean = s.unwritten(e.c),
                                         .inv_std = s.unwritten(e.c),
                                         .scale = s.unwritten(e.c),
                                         .beta = s.real(v.beta),
                                         .a = s.real(v.a),
                                         .b = s.real(v.b)};
            const BatchNormParameters p = {s.real(v.gamma), s.real(v.beta), s.real(v.running_mean), s.real(v.running_var)};
            s.ops().batch_norm_statistics(to, x, p, running, s.state(state));
            out.push_back({fmt::format("mean ({})", how), s.read(to.mean), sum});
            out.push_back({fmt::format("inv_std ({})", how), s.read(to.inv_std), sum});
            out.push_back({fmt::format("scale ({})", how), s.read(to.scale), sum});
            out.push_back({fmt::format("running_mean ({})", how), s.read(p.running_mean), sum});
            out.push_back({fmt::format("running_var ({})", how), s.read(p.running_var), sum});
        };
        run("updated", RunningStatistics::update, {});
        run("kept", RunningStatistics::keep, {});
        run("diverged", RunningStatistics::update, diverged);
    });
    add("running_norm_coefficients", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const NormCoefficients to = {.mean = s.unwritten(e.c),
                                     .inv_std = s.unwritten(e.c),
                                     .scale = s.unwritten(e.c),
                                     .beta = s.real(v.beta),
                                     .a = s.unwritten(e.c),
                                     .b = s.unwritten(e.c)};
        s.ops().running_norm_coefficients(to, {s.real(v.gamma), to.beta, s.real(v.running_mean), s.real(v.running_var)});
        const std::pair<const char*, Array> all[] = {
            {"mean", to.mean}, {"inv_std", to.inv_std}, {"scale", to.scale}, {"a", to.a}, {"b", to.b}};
        for (const auto& [what, array] : all) out.push_back({what, s.read(array), element});
    });
    add("norm_leaky", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor x = s.activation(e, v.x), y = s.activation(e);
        s.ops().norm_leaky(y, x, coefficients(s, v));
        out.push_back({"y", s.read(y), element});
        s.ops().norm_leaky(x, x, coefficients(s, v));
        out.push_back({"y in place", s.read(x), element});
    });
    add("leaky", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor y = s.activation(e);
        s.ops().leaky(y, s.activation(e, v.x));
        out.push_back({"y", s.read(y), element});
    });
    add("norm_backward_sums", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor x = s.activation(e, v.x), d_y = s.activation(e, v.d_y);
        const Array d_gamma = s.real(v.gamma), d_beta = s.real(v.beta);  // added to
        const NormCoefficients norm = coefficients(s, v), without = coefficients(s, v);
        s.ops().norm_backward_sums(norm, d_gamma, d_beta, d_y, x);
        s.ops().norm_backward_sums(without, {}, {}, d_y, x);
        out.push_back({"a", s.read(norm.a), sum});
        out.push_back({"b", s.read(norm.b), sum});
        out.push_back({"a alone", s.read(without.a), sum});
        out.push_back({"d_gamma", s.read(d_gamma), sum});
        out.push_back({"d_beta", s.read(d_beta), sum});
    });
    add("norm_leaky_backward", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor x = s.activation(e, v.x), d_y = s.activation(e, v.d_y), d_x = s.activation(e), residual = s.activation(e, v.residual);
        s.ops().norm_leaky_backward(d_x, d_y, x, coefficients(s, v), &residual);
        out.push_back({"d_x with residual", s.read(d_x), element});
        s.ops().norm_leaky_backward(d_y, d_y, x, coefficients(s, v), nullptr);
        out.push_back({"d_x in place", s.read(d_y), element});
    });
    add("leaky_backward", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor x = s.activation(e, v.x), d_y = s.activation(e, v.d_y), d_x = s.activation(e), residual = s.activation(e, v.residual);
        s.ops().leaky_backward(d_x, d_y, x, &residual);
        out.push_back({"d_x with residual", s.read(d_x), element});
        s.ops().leaky_backward(d_y, d_y, x, nullptr);
        out.push_back({"d_x in place", s.read(d_y), element});
    });
    add("bias_gradient", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Array d_bias = s.real(v.beta), of_logits = s.real(v.beta);  // added to
        s.ops().bias_gradient(d_bias, s.activation(e, v.d_y));
        s.ops().bias_gradient(of_logits, s.flat({e.n * e.h * e.w, e.c, 1, 1}, v.d_y));
        out.push_back({"d_bias", s.read(d_bias), sum});
        out.push_back({"d_bias of logits", s.read(of_logits), sum});
    });
    add("mean_pool", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor y = s.flat({e.n, e.c, 1, 1});
        s.ops().mean_pool(y, s.activation(e, v.x));
        out.push_back({"y", s.read(y), sum});
    });
    add("mean_pool_backward", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor d_x = s.activation(e);
        s.ops().mean_pool_backward(d_x, s.flat({e.n, e.c, 1, 1}, Values(v.d_y.begin(), v.d_y.begin() + e.n * e.c)));
        out.push_back({"d_x", s.read(d_x), element});
    });
}

// The fields of a state, one output each: they differ in size.
void add_state(Outputs& out, const std::string& how, const IterationState& s, const Bound& bound) {
    const std::pair<const char*, Values> fields[] = {
        {"iteration", {static_cast<double>(s.iteration)}},
        {"step", {static_cast<double>(s.step)}},
        {"learning_rate", {s.learning_rate}},
        {"adam_correction", {s.adam_correction1, s.adam_correction2}},
        {"f_pos", {s.f_pos[0], s.f_pos[1]}},
        {"f_neg", {s.f_neg[0], s.f_neg[1]}},
        {"loss_gen", {s.loss_gen[0], s.loss_gen[1]}},
        {"loss_clf", {s.loss_clf[0], s.loss_clf[1]}},
        {"accuracy", {s.accuracy}},
        {"grad_norm", {s.grad_norm}},
        {"perturb_scale", {s.perturb_scale}},
        {"sgld_grad_norm", {s.sgld_grad_norm}},
        {"diverged", {static_cast<double>(s.diverged)}},
    };
    for (const auto& [name, values] : fields) out.push_back({fmt::format("state.{} ({})", name, how), values, bound});
}

void add_loss_cases(std::vector<Case>& cases, const Limits& limits) {
    constexpr int64_t kRows = 7, kClasses = 13;
    const Extent logits_of = {kRows, kClasses, 1, 1};
    const auto logits = [=] { return Numbers(11).many(kRows * kClasses, -6, 6); };
    const auto lse = [] { return Numbers(12).many(kRows, 1, 5); };
    const Bound element = limits.element, scalar = limits.scalar;
    const double inf = INFINITY;
    IterationState begun;
    begun.f_pos[0] = 2.5;
    begun.f_pos[1] = 1.5;
    begun.f_neg[0] = -0.5;
    begun.f_neg[1] = 0.75;

    cases.push_back({"log_sum_exp", [=](Side& s) -> Outputs {
                         Values rows = logits();
                         for (size_t c = 0; c < kClasses; ++c) rows[c] *= 1e4;  // the largest term must be taken out
                         rows[kClasses] = std::nan("");
                         const Array to = s.unwritten(kRows);
                         s.ops().log_sum_exp(to, s.flat(logits_of, rows));
                         return {{"lse", s.read(to), {1e-6, 1e-9}}};
                     }});
    cases.push_back({"energy_summary", [=](Side& s) {
                         Outputs out;
                         const auto run = [&](const char* how, const Values& values, EnergyTerm term, Pass pass, double l2) {
                             IterationState* state = s.state(begun);
                             s.ops().energy_summary(state, s.real(values), term, pass, l2);
                             add_state(out, how, s.read(state), scalar);
                         };
                         Values infinite = lse(), nan = lse();
                         infinite[3] = inf;
                         nan[kRows - 1] = std::nan("");
                         run("positive", lse(), EnergyTerm::positive, Pass::at_weights, 0.1);
                         run("negative", lse(), EnergyTerm::negative, Pass::at_weights, 0.1);
                         run("negative, second pass", lse(), EnergyTerm::negative, Pass::at_perturbed, 0);
                         run("infinite", infinite, EnergyTerm::positive, Pass::at_weights, 0);
                         run("NaN", nan, EnergyTerm::negative, Pass::at_weights, 0);
                         run("exploded", Values(kRows, 2e5), EnergyTerm::negative, Pass::at_weights, 0);
                         return out;
                     }});
    cases.push_back({"energy_backward", [=](Side& s) {
                         Outputs out;
                         for (const EnergyTerm term : {EnergyTerm::sampling, EnergyTerm::positive, EnergyTerm::negative})
                             for (const Pass pass : {Pass::at_weights, Pass::at_perturbed}) {
                                 const Tensor from = s.flat(logits_of, logits()), to = s.flat(logits_of);
                                 const Array sums = s.unwritten(kRows);
                                 s.ops().log_sum_exp(sums, from);
                                 s.ops().energy_backward(to, from, sums, s.state(begun), term, pass, 0.7, 0.1);
                                 out.push_back({"d_logits", s.read(to), {1e-5, 1e-6}});
                                 s.ops().energy_backward(from, from, sums, s.state(begun), term, pass, 1, 0);
                                 out.push_back({"d_logits in place", s.read(from), {1e-5, 1e-6}});
                             }
                         return out;
                     }});
    cases.push_back({"cross_entropy", [=](Side& s) -> Outputs {
                         Integers labels;
                         for (int64_t i = 0; i < kRows; ++i) labels.push_back(static_cast<int32_t>(i * 5 % kClasses));
                         const Array loss = s.unwritten(kRows), hit = s.unwritten(kRows);
                         const Tensor to = s.flat(logits_of);
                         s.ops().cross_entropy(loss, hit, to, s.flat(logits_of, logits()), s.integers(labels), 0.7);
                         return {{"loss", s.read(loss), element}, {"hit", s.read(hit), kExact}, {"d_logits", s.read(to), {1e-5, 1e-6}}};
                     }});
    cases.push_back(
        {"classification_summary", [=](Side& s) {
             Outputs out;
             Values hits(kRows), nan = lse();
             hits[2] = hits[5] = 1;
             nan[0] = std::nan("");
             for (const auto& [losses, pass] : {std::pair{lse(), Pass::at_weights}, {lse(), Pass::at_perturbed}, {nan, Pass::at_weights}}) {
                 IterationState* state = s.state(begun);
                 s.ops().classification_summary(state, s.real(losses), s.real(hits), pass);
                 add_state(out, "summary", s.read(state), scalar);
             }
             return out;
         }});
}

constexpr uint64_t kSeed = 0x123456789ABCDEFu;

// Three classes of unequal size; images of 9x7 in three colours, 189 values: no multiple of four.
ResidentImages resident(Side& s, int64_t channels) {
    Numbers random(21);
    const Integers labels = {2, 0, 1, 1, 0, 2, 0, 0, 1, 0, 2, 0, 1, 0, 0};
    Integers order, begin;
    for (int32_t c = 0; c < 3; ++c) {
        begin.push_back(static_cast<int32_t>(order.size()));
        for (size_t i = 0; i < labels.size(); ++i)
            if (labels[i] == c) order.push_back(static_cast<int32_t>(i));
    }
    begin.push_back(static_cast<int32_t>(order.size()));
    const auto count = static_cast<int64_t>(labels.size());
    std::vector<uint8_t> pixels(static_cast<size_t>(count * 9 * 7 * channels));
    for (uint8_t& p : pixels) p = static_cast<uint8_t>(random.index(256));
    return {.pixels = s.bytes(pixels),
            .labels = s.integers(labels),
            .class_order = s.integers(order),
            .class_begin = s.integers(begin),
            .count = count,
            .height = 9,
            .width = 7,
            .channels = channels,
            .classes = 3,
            .largest_class = 8};
}

IterationState in_iteration(uint32_t iteration, uint32_t step = 0) {
    IterationState state;
    state.iteration = iteration;
    state.step = step;
    state.learning_rate = 0.05;
    state.adam_correction1 = 0.271;
    state.adam_correction2 = 0.003;
    return state;
}

IterationState diverged_state() {
    IterationState state = in_iteration(3);
    state.diverged = 1;
    return state;
}

void add_sampling_cases(std::vector<Case>& cases, const Limits& limits) {
    const Bound scalar = limits.scalar;
    const Bound draw = {0, 1e-5};  // logarithm, root and polynomials of Box-Muller, in f32 on every device

    cases.push_back(
        {"sgld_step", [=](Side& s) {
             Outputs out;
             constexpr int64_t kCount = 2 * 189;  // no multiple of four
             Numbers random(31);
             const Values x = random.many(kCount, -1, 1), g = random.many(kCount, -3, 3), noise = random.many(2 * kCount, -2, 2);
             const auto run = [&](const char* how, const SgldSettings& settings, Array given, const Values& gradient) {
                 const Array to = s.real(x);
                 s.ops().sgld_step(to, s.real(gradient), given, s.state(in_iteration(7, 1)), settings);
                 out.push_back({how, s.read(to), draw});
             };
             Values nan = g;
             nan[5] = std::nan("");
             run("x", {.step_size = 0.5, .noise = 0, .grad_clamp = 1, .pixel_clamp = true, .seed = kSeed}, {}, g);
             run("x without clamps", {.step_size = 0.5, .noise = 0, .grad_clamp = 0, .pixel_clamp = false, .seed = kSeed}, {}, g);
             run("x with noise", {.step_size = 0.1, .noise = 0.1, .grad_clamp = 1, .pixel_clamp = true, .seed = kSeed}, {}, g);
             run("x with given noise", {.step_size = 0.1, .noise = 0.1, .grad_clamp = 1, .pixel_clamp = true, .seed = kSeed}, s.real(noise),
                 g);
             run("x of a NaN", {.step_size = 0.5, .noise = 0, .grad_clamp = 1, .pixel_clamp = true, .seed = kSeed}, {}, nan);
             return out;
         }});
    cases.push_back({"sgld_gradient_norm", [=](Side& s) {
                         Outputs out;
                         Values g = Numbers(32).many(5001, -1, 1);
                         g.back() = 2;  // if any is left out, it is the last
                         for (const char* how : {"finite", "NaN"}) {
                             IterationState* state = s.state(in_iteration(1));
                             s.ops().sgld_gradient_norm(state, s.real(g), 3);
                             add_state(out, how, s.read(state), scalar);
                             g[4999] = std::nan("");
                         }
                         return out;
                     }});
    cases.push_back({"draw_chains", [=](Side& s) -> Outputs {
                         const Array index = s.integers(Integers(301, -7)), fresh = s.integers(Integers(301, -7));
                         s.ops().draw_chains(index, fresh, s.state(in_iteration(9)), 10007, 11, 0.3, kSeed);
                         return {{"index", s.read(index), kExact}, {"fresh", s.read(fresh), kExact}};
                     }});
    cases.push_back({"start_images", [=](Side& s) {
                         Outputs out;
                         const ResidentImages images = resident(s, 3);
                         const int64_t pixels = images.pixels_per_image();
                         const Integers fresh = {-1, 0, 2, 1, -1, 0}, index = {3, 0, 0, 0, 1, 0};
                         const auto chains = static_cast<int64_t>(fresh.size());
                         const Array buffer = s.real(Numbers(33).many(5 * pixels, -1, 1));
                         for (const StartForm form : {StartForm::informative, StartForm::uniform}) {
                             const Array x = s.unwritten(chains * pixels);
                             const Array weights = form == StartForm::uniform ? Array{} : s.unwritten(chains * images.largest_class);
                             s.ops().start_images(
                                 x, buffer, s.integers(index), s.integers(fresh), weights, images, s.state(in_iteration(4)),
                                 {.first_chain = 3, .weights = Stream::init_weights, .pixels = Stream::init_pixels, .seed = kSeed});
                             out.push_back({name_of(form), s.read(x), {0, 5e-5}});  // sums of up to 8 images of 255
                         }
                         return out;
                     }});
    cases.push_back({"store_chains", [=](Side& s) {
                         Outputs out;
                         constexpr int64_t kPixels = 45;
                         const Values x = Numbers(34).many(4 * kPixels, -1, 1), before = Numbers(35).many(6 * kPixels, -1, 1);
                         for (const IterationState& state : {in_iteration(1), diverged_state()}) {
                             const Array buffer = s.real(before);
                             s.ops().store_chains(buffer, s.real(x), s.integers({5, 2, 5, 0}), s.state(state));  // 5 twice: the last wins
                             out.push_back({"buffer", s.read(buffer), kExact});
                         }
                         return out;
                     }});
    cases.push_back({"draw_images", [=](Side& s) {
                         Outputs out;
                         const ResidentImages images = resident(s, 1);
                         for (const uint32_t iteration : {0u, 2u, 3u, 40u}) {
                             const Array draws = s.bytes(std::vector<uint8_t>(4 * sizeof(ImageDraw), 0xEE));
                             s.ops().draw_images(draws, images, s.state(in_iteration(iteration)),
                                                 {.order = Stream::labelled_order,
                                                  .augment = Stream::labelled_augment,
                                                  .crop = true,
                                                  .flip = true,
                                                  .noise = 0,
                                                  .noise_salt = 0,
                                                  .seed = kSeed});
                             out.push_back({"draws", s.read(Array{draws.data, DType::i32, 16}), kExact});
                         }
                         return out;
                     }});
    const Integers drawn = {3, -4, 4, 1, 14, 0, 0, 0, 7, 4, -4, 0, 0, -2, 1, 1};  // (index, dy, dx, flip) of four images
    cases.push_back({"crop_flip", [=](Side& s) {
                         Outputs out;
                         for (const int64_t channels : {1, 3})
                             for (const double noise : {0.0, 0.03}) {
                                 const ResidentImages images = resident(s, channels);
                                 const Array x = s.unwritten(4 * images.pixels_per_image());
                                 s.ops().crop_flip(x, s.integers(drawn), images, s.state(in_iteration(5)),
                                                   {.order = Stream::labelled_order,
                                                    .augment = Stream::labelled_augment,
                                                    .crop = true,
                                                    .flip = true,
                                                    .noise = noise,
                                                    .noise_salt = 1,
                                                    .seed = kSeed});
                                 out.push_back({fmt::format("x of {} channels, noise {}", channels, noise), s.read(x), draw});
                             }
                         return out;
                     }});
    cases.push_back({"gather_labels", [=](Side& s) -> Outputs {
                         const Array labels = s.integers(Integers(4, -7));
                         s.ops().gather_labels(labels, s.integers(drawn), resident(s, 1));
                         return {{"labels", s.read(labels), kExact}};
                     }});
}

void add_parameter_cases(std::vector<Case>& cases, const Limits& limits) {
    const Bound scalar = limits.scalar;
    const Bound element = {2e-6, 1e-6};  // parameters are never narrower than f32
    static constexpr int64_t kCounts[] = {1, 1003, 70001};
    const auto numbers = [](int64_t n, uint64_t seed, double low, double high) { return Numbers(seed).many(n, low, high); };

    cases.push_back({"fill_zero", [=](Side& s) {
                         Outputs out;
                         for (const int64_t n : kCounts) {
                             const Array x = s.unwritten(n);
                             s.ops().fill_zero(x);
                             out.push_back({"x", s.read(x), kExact});
                         }
                         return out;
                     }});
    cases.push_back({"gradient_norm", [=](Side& s) {
                         Outputs out;
                         for (const SamForm form : {SamForm::none, SamForm::sam, SamForm::asam, SamForm::asam_sign})
                             for (const Pass pass : {Pass::at_weights, Pass::at_perturbed})
                                 for (const int64_t n : kCounts) {
                                     IterationState* state = s.state(in_iteration(2));
                                     Values g = numbers(n, 41, -1, 1);
                                     g.back() = 2;  // if any is left out, it is the last
                                     s.ops().gradient_norm(state, s.real(g), s.real(numbers(n, 42, -1, 1)), form, 0.2, pass);
                                     add_state(out, fmt::format("{} of {}", name_of(form), n), s.read(state), scalar);
                                 }
                         Values nan = numbers(1003, 41, -1, 1);
                         nan[1002] = std::nan("");
                         IterationState* state = s.state(in_iteration(2));
                         s.ops().gradient_norm(state, s.real(nan), s.real(numbers(1003, 42, -1, 1)), SamForm::sam, 0.2, Pass::at_perturbed);
                         add_state(out, "NaN", s.read(state), scalar);
                         return out;
                     }});
    cases.push_back({"sam_perturb", [=](Side& s) {
                         Outputs out;
                         IterationState state = in_iteration(2);
                         state.perturb_scale = 0.37;
                         for (const SamForm form : {SamForm::sam, SamForm::asam, SamForm::asam_sign})
                             for (const int64_t n : kCounts) {
                                 const Array to = s.unwritten(n);
                                 Values g = numbers(n, 44, -1, 1);
                                 g[0] = 0;
                                 s.ops().sam_perturb(to, s.real(numbers(n, 43, -1, 1)), s.real(g), s.state(state), form);
                                 out.push_back({name_of(form), s.read(to), element});
                             }
                         return out;
                     }});
    const auto update = [&cases, numbers, element](const char* name, auto run) {
        cases.push_back({name, [=](Side& s) {
                             Outputs out;
                             for (const int64_t n : kCounts)
                                 for (const IterationState& state : {in_iteration(2), diverged_state()}) {
                                     const Array w = s.real(numbers(n, 45, -1, 1)), m = s.real(numbers(n, 46, -1, 1));
                                     const Array v = s.real(numbers(n, 47, 0.01, 1)), g = s.real(numbers(n, 48, -1, 1));
                                     run(s, w, m, v, g, s.state(state));
                                     const char* how = state.diverged != 0 ? "diverged" : "updated";
                                     out.push_back({fmt::format("weights ({})", how), s.read(w), element});
                                     out.push_back({fmt::format("first ({})", how), s.read(m), element});
                                     out.push_back({fmt::format("second ({})", how), s.read(v), element});
                                 }
                             return out;
                         }});
    };
    update("sgd_update",
           [](Side& s, Array w, Array m, Array, Array g, IterationState* state) { s.ops().sgd_update(w, m, g, state, 0.9, 5e-4); });
    update("adam_update",
           [](Side& s, Array w, Array m, Array v, Array g, IterationState* state) { s.ops().adam_update(w, m, v, g, state, 5e-4); });
    update("ema_update", [](Side& s, Array w, Array m, Array, Array, IterationState* state) { s.ops().ema_update(m, w, state, 0.99); });
    cases.push_back({"begin_iteration", [=](Side& s) {
                         Outputs out;
                         IterationState* state = s.state(in_iteration(3, 2));
                         s.ops().begin_iteration(state, 70000, 0.02, 0.1, 0.001);
                         add_state(out, "begun", s.read(state), kExact);
                         return out;
                     }});
    cases.push_back({"advance_step", [=](Side& s) {
                         Outputs out;
                         IterationState* state = s.state(in_iteration(3, 2));
                         s.ops().advance_step(state);
                         add_state(out, "advanced", s.read(state), kExact);
                         return out;
                     }});
    cases.push_back({"copy, read_back", [=](Side& s) -> Outputs {
                         const Array from = s.real(numbers(1003, 49, -1, 1)), to = s.unwritten(1003);
                         s.device().copy(to.data, from.data, to.bytes());
                         IterationState back;
                         s.device().read_back(&back, s.state(in_iteration(77)), sizeof back);
                         s.device().synchronize();
                         return {{"copy", s.read(to), kExact}, {"read_back", {static_cast<double>(back.iteration)}, kExact}};
                     }});
}

// Convolutions -----------------------------------------------------------------------------------------------------------------

struct ConvKind {
    const char* name;
    ConvShape shape;
};
// The kinds of a Wide-ResNet, on odd sizes where strides and borders are easily confused.
constexpr ConvKind kConvKinds[] = {
    {"stem, 1 channel", {.in_channels = 1, .out_channels = 16, .height = 8, .width = 8, .kernel = 3, .stride = 1}},
    {"stem, 3 channels", {.in_channels = 3, .out_channels = 16, .height = 9, .width = 7, .kernel = 3, .stride = 1}},
    {"3x3", {.in_channels = 16, .out_channels = 32, .height = 7, .width = 5, .kernel = 3, .stride = 1}},
    {"3x3, 64 channels", {.in_channels = 64, .out_channels = 64, .height = 8, .width = 8, .kernel = 3, .stride = 1}},
    {"3x3 stride 2, odd", {.in_channels = 32, .out_channels = 64, .height = 9, .width = 7, .kernel = 3, .stride = 2}},
    {"3x3 stride 2, even", {.in_channels = 16, .out_channels = 32, .height = 8, .width = 8, .kernel = 3, .stride = 2}},
    {"1x1", {.in_channels = 16, .out_channels = 32, .height = 5, .width = 7, .kernel = 1, .stride = 1}},
    {"1x1 stride 2", {.in_channels = 32, .out_channels = 64, .height = 9, .width = 8, .kernel = 1, .stride = 2}},
};

// Both algorithms and two batch sizes; run does one pass with everything prepared.
struct ConvTrial {
    ConvPlan* plan;
    std::byte *prepared, *workspace;
    ConvShape shape;
    int64_t batch;
    Extent in, out;
    bool image;  // the input is an image (R, block = C), not a hidden activation
    Bound bound;
    std::string how;

    Tensor input(Side& s, const Values& v) const { return image ? s.flat(in, v) : s.activation(in, v); }
    Tensor input(Side& s) const { return image ? s.flat(in) : s.activation(in); }
};

void add_convolution_cases(std::vector<Case>& cases, const Limits& limits) {
    const auto add = [&](const ConvKind& kind, const char* pass, auto run) {
        cases.push_back({fmt::format("convolution {}: {}", kind.name, pass), [=, shape = kind.shape](Side& s) {
                             Outputs out;
                             for (const ConvAlgorithm algorithm : {ConvAlgorithm::direct, ConvAlgorithm::automatic}) {
                                 const auto plan = s.device().plan_convolution(shape, {.batches = {1, 3}, .algorithm = algorithm});
                                 const double width = 1 / std::sqrt(static_cast<double>(shape.in_channels * shape.kernel * shape.kernel));
                                 const Array w = s.real(Numbers(51).many(shape.weight_count(), -2 * width, 2 * width));
                                 for (const int64_t n : {1, 3}) {
                                     ConvTrial t = {.plan = plan.get(),
                                                    .prepared = s.scratch(plan->prepared_bytes()),
                                                    .workspace = s.scratch(plan->workspace_bytes()),
                                                    .shape = shape,
                                                    .batch = n,
                                                    .in = {n, shape.in_channels, shape.height, shape.width},
                                                    .out = {n, shape.out_channels, shape.out_height(), shape.out_width()},
                                                    .image = shape.in_channels < 16,
                                                    .bound = algorithm == ConvAlgorithm::direct ? limits.convolution : limits.winograd,
                                                    .how = fmt::format("({}, batch {})", name_of(algorithm), n)};
                                     plan->prepare(t.prepared, w, t.workspace);
                                     run(out, s, t);
                                 }
                                 s.device().synchronize();
                             }
                             return out;
                         }});
    };
    for (const ConvKind& kind : kConvKinds) {
        add(kind, "forward", [](Outputs& out, Side& s, const ConvTrial& t) {
            Numbers random(52);
            const Tensor x = t.input(s, random.many(t.in.count(), -1, 1)), y = s.activation(t.out);
            const Array bias = s.real(random.many(t.shape.out_channels, -1, 1));
            t.plan->forward(y, x, t.prepared, bias, nullptr, t.workspace);
            out.push_back({"y " + t.how, s.read(y), t.bound});
            const Tensor residual = s.activation(t.out, random.many(t.out.count(), -1, 1));
            t.plan->forward(y, x, t.prepared, bias, &residual, t.workspace);
            out.push_back({"y + residual " + t.how, s.read(y), t.bound});
            t.plan->forward(residual, x, t.prepared, bias, &residual, t.workspace);
            out.push_back({"y + residual in place " + t.how, s.read(residual), t.bound});
        });
        add(kind, "backward to data", [](Outputs& out, Side& s, const ConvTrial& t) {
            const Tensor d_x = t.input(s);
            t.plan->backward_data(d_x, s.activation(t.out, Numbers(53).many(t.out.count(), -1, 1)), t.prepared, t.workspace);
            out.push_back({"d_x " + t.how, s.read(d_x), t.bound});
        });
        add(kind, "backward to weights", [](Outputs& out, Side& s, const ConvTrial& t) {
            Numbers random(54);
            const Array d_w = s.real(random.many(t.shape.weight_count(), -1, 1));  // added to
            const Tensor x = t.input(s, random.many(t.in.count(), -1, 1));
            t.plan->backward_weights(d_w, x, s.activation(t.out, random.many(t.out.count(), -1, 1)), t.workspace);
            out.push_back({"d_w " + t.how, s.read(d_w), t.bound});
        });
    }
    cases.push_back({"linear layer", [=](Side& s) {
                         Outputs out;
                         constexpr int64_t kIn = 48, kOut = 10;
                         const auto plan = s.device().plan_linear(kIn, kOut, {1, 7});
                         std::byte* workspace = s.scratch(plan->workspace_bytes());
                         for (const int64_t n : {1, 7}) {
                             Numbers random(55);
                             const Tensor x = s.flat({n, kIn, 1, 1}, random.many(n * kIn, -1, 1)), y = s.flat({n, kOut, 1, 1});
                             const Tensor d_y = s.flat({n, kOut, 1, 1}, random.many(n * kOut, -1, 1)), d_x = s.flat({n, kIn, 1, 1});
                             const Array w = s.real(random.many(kIn * kOut, -1, 1)), b = s.real(random.many(kOut, -1, 1));
                             const Array d_w = s.real(random.many(kIn * kOut, -1, 1));  // added to
                             plan->forward(y, x, w, b, workspace);
                             plan->backward_data(d_x, d_y, w, workspace);
                             plan->backward_weights(d_w, x, d_y, workspace);
                             out.push_back({"y", s.read(y), limits.convolution});
                             out.push_back({"d_x", s.read(d_x), limits.convolution});
                             out.push_back({"d_w", s.read(d_w), limits.convolution});
                         }
                         s.device().synchronize();
                         return out;
                     }});
}

// One training iteration -------------------------------------------------------------------------------------------------------

// Of 60 tried, 55 had no LeakyReLU input near enough to its kink for f32 to take the other side; these not even with Winograd's errors.
constexpr uint64_t kNetworkSeed = 42, kBatchSeed = 1042;

Settings iteration_settings() {
    Settings s;
    s.depth = 10;
    s.width = 2;
    s.in_channels = 3;
    s.image_size = 8;
    s.num_classes = 10;
    s.sgld_steps = 2;
    s.sgld_step_size = 20;  // so that x moves by more than rounding
    s.lr = 0.1;
    s.seed = kSeed;
    s.conv_algorithm = ConvAlgorithm::direct;
    return s;
}

// A network in the middle of training: freshly initialised ones hardly move x.
SafetensorsFile random_checkpoint(const Network& network, uint64_t seed) {
    SafetensorsFile file;
    Numbers random(seed);
    const auto add = [&](const TensorInfo& info, double low, double high) {
        const Values values = random.many(info.count(), low, high);
        file.tensors[info.name] = make_file_tensor(std::span<const double>(values), info.shape);
    };
    for (const TensorInfo& info : network.parameters()) {
        const double head = info.name.starts_with("class_output") ? 2 : 1;
        const double bound = info.fan_in > 0 ? head / std::sqrt(static_cast<double>(info.fan_in)) : 0;
        if (info.fan_in > 0)
            add(info, -bound, bound);
        else
            add(info, info.initial == 1 ? 0.5 : -0.3, info.initial == 1 ? 1.5 : 0.3);
    }
    for (const TensorInfo& info : network.statistics()) add(info, info.initial == 1 ? 0.5 : -0.2, info.initial == 1 ? 1.5 : 0.2);
    return file;
}

SafetensorsFile random_batch(const Settings& s, uint64_t seed) {
    SafetensorsFile file;
    Numbers random(seed);
    for (const auto& [name, n] : {std::pair<const char*, int64_t>{"x_pos", 2}, {"x_neg_start", 2}, {"x_lab", 3}}) {
        const std::vector<int64_t> shape = {n, s.in_channels, s.image_size, s.image_size};
        const Values values = random.many(n * s.in_channels * s.image_size * s.image_size, -0.9, 0.9);
        file.tensors[name] = make_file_tensor(std::span<const double>(values), shape);
    }
    const std::vector<int64_t> y = {3, 1, 9};
    file.tensors["y"] = make_file_tensor(std::span<const int64_t>(y), {3});
    return file;
}

// |got - want| / |want| in the L2 norm, over all tensors whose names begin so.
double relative_difference(const SafetensorsFile& got, const SafetensorsFile& want, const std::string& prefix) {
    double difference = 0, norm = 0;
    for (const auto& [name, tensor] : want.tensors) {
        if (!name.starts_with(prefix)) continue;
        const Values g = got.doubles(name), w = want.doubles(name);
        for (size_t i = 0; i < w.size(); ++i) {
            difference += (g.at(i) - w[i]) * (g[i] - w[i]);
            norm += w[i] * w[i];
        }
    }
    return std::sqrt(difference / norm);
}

std::vector<Finding> check_iteration(Device& device, Device& reference, const Limits& limits) {
    const Settings s = iteration_settings();
    const auto step_on = [&](Device& d) {
        const auto network = make_network(s);
        const SafetensorsFile checkpoint = random_checkpoint(*network, kNetworkSeed), batch = random_batch(s, kBatchSeed);
        return run_step(d, *network, s,
                        {.checkpoint = checkpoint,
                         .checkpoint_path = "selftest",
                         .batch = batch,
                         .batch_path = "selftest",
                         .optimizer_step = 0,
                         .iterations = 1});
    };
    const SafetensorsFile got = step_on(device), want = step_on(reference);
    std::vector<Finding> findings;
    const auto values = [&](const std::string& what, const std::vector<std::string>& prefixes, double limit) {
        Finding f{.name = "iteration: " + what, .detail = {}};
        for (const std::string& prefix : prefixes)
            for (const auto& [name, tensor] : want.tensors)
                if (name.starts_with(prefix)) compare(f, {name, got.doubles(name), {}}, {name, want.doubles(name), {limit, limit}});
        findings.push_back(f);
    };
    const auto norms = [&](const std::string& what, const std::string& prefix, double limit) {
        const double error = relative_difference(got, want, prefix);
        Finding f{.name = "iteration: " + what, .ok = error <= limit, .max_error = error, .detail = {}};
        if (!f.ok) f.detail = fmt::format("|got - want| is {:.2g} of |want|, at most {:.2g} was expected", error, limit);
        findings.push_back(f);
    };
    values("logits", {"logits_lab"}, limits.logits);
    values("losses", {"f_pos", "f_neg", "loss_"}, limits.logits);
    values("running statistics", {"running."}, limits.statistics);
    norms("samples after 2 SGLD steps", "x_neg", limits.samples);
    norms("gradient at the weights", "grad1.", limits.gradients);
    norms("gradient at the perturbed weights", "grad2.", limits.gradients);
    norms("weights after the update", "param.", limits.gradients);
    return findings;
}

enum class Execution { eager, replayed };

// Two iterations; all that is left behind, as it lies on the device.
class IterationRun {
public:
    IterationRun(Device& device, Execution execution, Memory::Sharing sharing)
        : device_(device),
          settings_(iteration_settings()),
          network_(make_network(settings_)),
          memory_(device, sharing, Memory::Guards::always),
          iteration_(device, memory_, *network_, settings_, TrainingIteration::GivenBatches{.positive = 2, .negative = 2, .labelled = 3}) {
        iteration_.plan();
        memory_.allocate();
        if (execution == Execution::replayed) iteration_.record();
    }

    std::vector<std::byte> run() {
        Parameters& p = iteration_.parameters();
        p.load(random_checkpoint(*network_, kNetworkSeed), "selftest", {});
        const SafetensorsFile batch = random_batch(settings_, kBatchSeed);
        const auto put = [&](Array to, const char* name) { upload_values(device_, to, batch.doubles(name)); };
        put(iteration_.positive_images(), "x_pos");
        put(iteration_.sampler().samples(), "x_neg_start");
        put(iteration_.labelled_images(), "x_lab");
        const std::vector<int64_t> y = batch.ints("y");
        const Integers labels(y.begin(), y.end());
        device_.upload(iteration_.labels().data, labels.data(), labels.size() * sizeof(int32_t));
        upload_values(device_, p.velocity(), Values(static_cast<size_t>(p.velocity().count)));
        const IterationState fresh;
        device_.upload(iteration_.state(), &fresh, sizeof fresh);
        iteration_.prepare_weights();
        for (int64_t i = 0; i < 2; ++i) {
            iteration_.begin(i, settings_.lr, i);
            iteration_.run_all();
        }
        device_.synchronize();
        std::vector<std::byte> out;
        const auto take = [&](const void* data, size_t bytes) {
            out.resize(out.size() + bytes);
            device_.download(out.data() + out.size() - bytes, data, bytes);
        };
        for (const Array& a : {p.weights(), p.velocity(), p.gradient(), p.statistics(), iteration_.sampler().samples()})
            take(a.data, a.bytes());
        take(iteration_.state(), sizeof(IterationState));
        return out;
    }
    void check_guards() const { memory_.check_guards(); }

private:
    Device& device_;
    Settings settings_;
    std::unique_ptr<Network> network_;
    Memory memory_;
    TrainingIteration iteration_;
};

Finding identical(const std::string& name, const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
    Finding f{.name = name, .ok = a == b, .detail = {}};
    if (f.ok) return f;
    size_t differing = 0;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) differing += a[i] != b[i] ? 1 : 0;
    f.detail = fmt::format("{} of {} bytes of weights, momentum, gradient, statistics, samples and scalars differ", differing, a.size());
    return f;
}

std::vector<Finding> check_repetition(Device& device) {
    IterationRun replayed(device, Execution::replayed, Memory::Sharing::by_lifetime);
    IterationRun eager(device, Execution::eager, Memory::Sharing::by_lifetime);
    IterationRun apart(device, Execution::eager, Memory::Sharing::none);
    const std::vector<std::byte> first = replayed.run();
    std::vector<Finding> findings = {identical("replayed graphs equal eager calls, bit for bit", first, eager.run()),
                                     identical("shared memory equals separate memory, bit for bit", first, apart.run()),
                                     identical("a repeated run is identical", first, replayed.run())};
    Finding guards{.name = "memory guard bytes", .detail = {}};
    try {
        for (const IterationRun* run : {&replayed, &eager, &apart}) run->check_guards();
    } catch (const std::exception& e) {
        guards.ok = false;
        guards.detail = e.what();
    }
    findings.push_back(guards);
    return findings;
}

// ------------------------------------------------------------------------------------------------------------------------------

struct SelftestOptions {
    CommonOptions common;
    std::string precision = "f32";
};

class Report {
public:
    explicit Report(bool print) : print_(print) {}

    void add(const Finding& f) {
        findings_.push_back(f);
        if (!print_) return;
        const std::string error = f.max_error > 0 ? fmt::format("  max error {:.1g}", f.max_error) : "";
        fmt::print("{:6}  {}{}{}\n", f.ok ? "ok" : "FAILED", f.name, error, f.ok ? "" : "  " + f.detail);
        std::fflush(stdout);
    }
    // An exception is a failure as well: whatever could not be run does not work here.
    template <class Body>
    void guarded(const std::string& name, Body&& body) {
        try {
            body();
        } catch (const std::exception& e) {
            add({.name = name, .ok = false, .max_error = 0, .detail = e.what()});
        }
    }
    int64_t failed() const {
        return std::count_if(findings_.begin(), findings_.end(), [](const Finding& f) { return !f.ok; });
    }
    const std::vector<Finding>& findings() const { return findings_; }

private:
    bool print_;
    std::vector<Finding> findings_;
};

void run_case(Report& report, const Case& c, Device& device, Device& reference) {
    report.guarded(c.name, [&] {
        const bool narrow = device.activation_type() == DType::bf16;
        Side side(device, narrow), oracle(reference, narrow);
        const std::vector<Output> got = c.run(side), want = c.run(oracle);
        Finding f{.name = c.name, .detail = {}};
        for (size_t i = 0; i < want.size(); ++i) compare(f, got.at(i), want[i]);
        side.check_guards();
        report.add(f);
    });
}

int selftest(const SelftestOptions& o) {
    const auto device = make_device(o.common, o.precision);
    const auto reference = make_reference_device(DType::f64);
    const Limits limits = limits_of(o.precision);
    if (!o.common.quiet)
        fmt::print(stderr, "selftest: {} ({}) against the reference in f64; errors relative to each tensor's rms\n", device->name(),
                   device->description());

    std::vector<Case> cases;
    add_norm_cases(cases, limits);
    add_loss_cases(cases, limits);
    add_sampling_cases(cases, limits);
    add_parameter_cases(cases, limits);
    add_convolution_cases(cases, limits);
    Report report(!o.common.json);
    for (const Case& c : cases) run_case(report, c, *device, *reference);
    report.guarded("iteration", [&] {
        for (const Finding& f : check_iteration(*device, *reference, limits)) report.add(f);
    });
    report.guarded("repetition", [&] {
        for (const Finding& f : check_repetition(*device)) report.add(f);
    });

    const int64_t failed = report.failed(), total = static_cast<int64_t>(report.findings().size());
    nlohmann::ordered_json json = {
        {"device", device->name()}, {"description", device->description()}, {"passed", total - failed}, {"failed", failed}};
    json["checks"] = nlohmann::ordered_json::array();
    for (const Finding& f : report.findings()) {
        json["checks"].push_back({{"name", f.name}, {"ok", f.ok}, {"max_error", f.max_error}});
        if (!f.ok) json["checks"].back()["detail"] = f.detail;
    }
    if (!o.common.json) fmt::print("{}: {} checks passed, {} failed\n", device->name(), total - failed, failed);
    print_result(o.common, json);
    return failed == 0 ? kExitDone : kExitFailed;
}

}  // namespace

Command add_selftest(CLI::App& app) {
    auto o = std::make_shared<SelftestOptions>();
    app.add_option("--precision", o->precision, "Arithmetic (f32|tf32|bf16; f64 on the reference)")
        ->check(CLI::IsMember({"f32", "tf32", "bf16", "f64"}))
        ->capture_default_str()
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    o->common.add_to(app);
    return [o] { return selftest(*o); };
}

}  // namespace jem
