#include <fmt/format.h>

#include <cmath>

#include "engine/settings/settings.h"
#include "tools/jem_engine/selftest/selftest.h"

namespace jem::selftest {
namespace {

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
    {"3x3, 160 channels", {.in_channels = 32, .out_channels = 160, .height = 16, .width = 8, .kernel = 3, .stride = 1}},
    {"3x3 stride 2, odd", {.in_channels = 32, .out_channels = 64, .height = 9, .width = 7, .kernel = 3, .stride = 2}},
    {"3x3 stride 2, even", {.in_channels = 16, .out_channels = 32, .height = 8, .width = 8, .kernel = 3, .stride = 2}},
    {"1x1", {.in_channels = 16, .out_channels = 32, .height = 5, .width = 7, .kernel = 1, .stride = 1}},
    {"1x1 stride 2", {.in_channels = 32, .out_channels = 64, .height = 9, .width = 8, .kernel = 1, .stride = 2}},
};

// The algorithms and two batch sizes; run does one pass with everything prepared.
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

}  // namespace

std::vector<Case> convolution_cases(const Limits& limits, const std::vector<ConvAlgorithm>& algorithms) {
    std::vector<Case> cases;
    const auto add = [&](const ConvKind& kind, const char* pass, auto run) {
        cases.push_back(
            {fmt::format("convolution {}: {}", kind.name, pass), [=, shape = kind.shape](Side& s) {
                 Outputs out;
                 for (const ConvAlgorithm algorithm : algorithms) {
                     const bool image = shape.in_channels < 16;
                     const auto plan = s.device().plan_convolution(
                         shape, {.batches = {1, 3}, .algorithm = algorithm, .input = image ? ConvInput::images : ConvInput::activations});
                     const double width = 1 / std::sqrt(static_cast<double>(shape.in_channels * shape.kernel.area()));
                     const Array w = s.real(Numbers(51).many(shape.weight_count(), -2 * width, 2 * width));
                     for (const int64_t n : {1, 3}) {
                         ConvTrial t = {.plan = plan.get(),
                                        .prepared = s.scratch(plan->prepared_bytes()),
                                        .workspace = s.scratch(plan->workspace_bytes()),
                                        .shape = shape,
                                        .batch = n,
                                        .in = {n, shape.in_channels, shape.height, shape.width},
                                        .out = {n, shape.out_channels, shape.out_height(), shape.out_width()},
                                        .image = image,
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
        if (kind.shape.in_channels >= 16)
            add(kind, "behind norm and LeakyReLU", [](Outputs& out, Side& s, const ConvTrial& t) {
                Numbers random(56);
                const auto coefficient = [&](double low, double high) { return s.real(random.many(t.in.c, low, high)); };
                const NormCoefficients norm{
                    .mean = coefficient(-1, 1), .inv_std = {}, .scale = coefficient(0.5, 2), .beta = coefficient(-1, 1), .a = {}, .b = {}};
                const Tensor x = t.input(s, random.many(t.in.count(), -1, 1)), a = t.input(s), y = s.activation(t.out);
                const Tensor d_y = s.activation(t.out, random.many(t.out.count(), -1, 1));
                const Array bias = s.real(random.many(t.shape.out_channels, -1, 1));
                const Array d_w = s.real(random.many(t.shape.weight_count(), -1, 1));  // added to
                s.device().ops().norm_leaky(a, x, norm);
                if (t.plan->fuses(t.batch, {.activation = true}, false).activation)
                    t.plan->forward_fused(y, x, {.norm = &norm}, t.prepared, bias, nullptr, t.workspace);
                else
                    t.plan->forward(y, a, t.prepared, bias, nullptr, t.workspace);
                if (t.plan->fuses_weights_activation(t.batch))
                    t.plan->backward_weights_fused(d_w, x, norm, d_y, t.workspace);
                else
                    t.plan->backward_weights(d_w, a, d_y, t.workspace);
                // What lies between norm and convolution is rounded too.
                const Bound bound{2 * t.bound.of_value, 2 * t.bound.of_rms};
                out.push_back({"y " + t.how, s.read(y), bound});
                out.push_back({"d_w " + t.how, s.read(d_w), bound});
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
    return cases;
}

}  // namespace jem::selftest
