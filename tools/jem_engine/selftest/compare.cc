#include <fmt/format.h>

#include <cstring>

#include "tools/jem_engine/selftest/selftest.h"

namespace jem::selftest {

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
    f32.logits = 1e-2;
    f32.statistics = 0.1;  // half of what they come from is samples
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

Sizes usual_sizes() { return {.extents = {{3, 48, 5, 3}, {2, 5, 1, 7}, {4, 32, 13, 11}, {1, 16, 1, 1}}, .counts = {1, 1003, 70001}}; }

namespace {

double rms(const Values& v) {
    double square = 0;
    for (const double x : v) square += std::isfinite(x) ? x * x : 0;
    return v.empty() ? 0 : std::sqrt(square / static_cast<double>(v.size()));
}

}  // namespace

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

Finding run_case(const Case& c, Device& device, Device& reference) {
    Finding f{.name = c.name, .detail = {}};
    try {
        const bool narrow = device.activation_type() == DType::bf16;
        Side side(device, narrow), oracle(reference, narrow);
        const Outputs got = c.run(side), want = c.run(oracle);
        for (size_t i = 0; i < want.size(); ++i) compare(f, got.at(i), want[i]);
        side.check_guards();
    } catch (const std::exception& e) {
        f.ok = false;
        f.detail = e.what();
    }
    return f;
}

}  // namespace jem::selftest
