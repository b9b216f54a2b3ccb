#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tools/jem_engine/selftest/selftest.h"

namespace jem::selftest {
namespace {

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

using OnExtent = std::function<void(Outputs&, Side&, const Extent&, const NormNumbers&)>;

Outputs on_extents(Side& s, const std::vector<Extent>& extents, const OnExtent& run) {
    Outputs out;
    for (const Extent& e : extents) {
        const size_t first = out.size();
        run(out, s, e, norm_numbers(e));
        for (size_t i = first; i < out.size(); ++i) out[i].what += fmt::format(" of [{}, {}, {}, {}]", e.n, e.c, e.h, e.w);
    }
    return out;
}

void add_norm_cases(std::vector<Case>& cases, const Limits& limits, const std::vector<Extent>& extents) {
    const auto add = [&](const char* name, OnExtent run) {
        cases.push_back({name, [run, extents](Side& s) { return on_extents(s, extents, run); }});
    };
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
    // The sums are two numbers a channel that only have to be possible ones.
    const auto sums_of = [](const Extent& e, const NormNumbers& v) {
        const double count = static_cast<double>(e.n * e.h * e.w);
        Values sums;
        for (const double mean : v.mean) sums.push_back(count * mean);
        for (int64_t c = 0; c < e.c; ++c) sums.push_back(count * (v.mean[static_cast<size_t>(c)] * v.mean[static_cast<size_t>(c)] + 1));
        return sums;
    };
    add("batch_norm_of_sums", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        for (const RunningStatistics running : {RunningStatistics::update, RunningStatistics::keep}) {
            const NormCoefficients to = {.mean = s.unwritten(e.c),
                                         .inv_std = s.unwritten(e.c),
                                         .scale = s.unwritten(e.c),
                                         .beta = s.real(v.beta),
                                         .a = s.real(v.a),
                                         .b = s.real(v.b)};
            const BatchNormParameters p = {s.real(v.gamma), s.real(v.beta), s.real(v.running_mean), s.real(v.running_var)};
            s.ops().batch_norm_of_sums(to, s.real(sums_of(e, v)), s.activation(e), p, running, s.state());
            const std::pair<const char*, Array> all[] = {{"mean", to.mean},
                                                         {"inv_std", to.inv_std},
                                                         {"scale", to.scale},
                                                         {"running_mean", p.running_mean},
                                                         {"running_var", p.running_var}};
            for (const auto& [what, array] : all) out.push_back({what, s.read(array), element});
        }
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
    add("norm_backward_of_sums", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Array d_gamma = s.real(v.gamma), d_beta = s.real(v.beta);  // added to
        const NormCoefficients norm = coefficients(s, v);
        s.ops().norm_backward_of_sums(norm, d_gamma, d_beta, s.real(sums_of(e, v)), s.activation(e));
        const std::pair<const char*, Array> all[] = {{"a", norm.a}, {"b", norm.b}, {"d_gamma", d_gamma}, {"d_beta", d_beta}};
        for (const auto& [what, array] : all) out.push_back({what, s.read(array), element});
    });
    add("norm_backward", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor x = s.activation(e, v.x), dz = s.activation(e, v.d_y), d_x = s.activation(e), residual = s.activation(e, v.residual);
        s.ops().norm_backward(d_x, dz, x, coefficients(s, v), &residual);
        out.push_back({"d_x with residual", s.read(d_x), element});
        s.ops().norm_backward(dz, dz, x, coefficients(s, v), nullptr);
        out.push_back({"d_x in place", s.read(dz), element});
    });
    add("norm_leaky_backward", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor x = s.activation(e, v.x), d_y = s.activation(e, v.d_y), d_x = s.activation(e), residual = s.activation(e, v.residual);
        s.ops().norm_leaky_backward(d_x, d_y, x, coefficients(s, v), &residual);
        out.push_back({"d_x with residual", s.read(d_x), element});
        s.ops().norm_leaky_backward(d_y, d_y, x, coefficients(s, v), nullptr);
        out.push_back({"d_x in place", s.read(d_y), element});
    });
    const auto doubles = [](Side& s, int64_t count) {
        return Array{s.scratch(static_cast<size_t>(count) * sizeof(double)), DType::f64, count};
    };
    const auto unwritten_norm = [](Side& s, int64_t count) {
        return NormCoefficients{.mean = s.unwritten(count),
                                .inv_std = s.unwritten(count),
                                .scale = s.unwritten(count),
                                .beta = s.unwritten(count),
                                .a = s.unwritten(count),
                                .b = s.unwritten(count)};
    };
    add("group_norm", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        for (const int64_t group : {int64_t{1}, e.c}) {
            const Tensor x = s.activation(e, v.x);
            const NormCoefficients to = unwritten_norm(s, e.n * e.c);
            const Array moments = doubles(s, 2 * e.n * e.c);
            s.ops().image_moments(moments, x);
            s.ops().group_norm(to, moments, s.real(v.gamma), s.real(v.beta), x, group, 0.1);
            const std::pair<const char*, Array> all[] = {
                {"mean", to.mean}, {"inv_std", to.inv_std}, {"scale", to.scale}, {"beta", to.beta}};
            for (const auto& [what, array] : all) out.push_back({fmt::format("{} of groups of {}", what, group), s.read(array), sum});
        }
    });
    add("group_norm_backward", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const auto of_images_of = [&](const Values& of_channels) {
            Values all;
            for (int64_t n = 0; n < e.n; ++n) all.insert(all.end(), of_channels.begin(), of_channels.end());
            return s.real(all);
        };
        for (const int64_t group : {int64_t{1}, e.c}) {
            NormCoefficients norm = unwritten_norm(s, e.n * e.c);
            norm.mean = of_images_of(v.mean);
            norm.inv_std = of_images_of(v.inv_std);
            norm.scale = of_images_of(v.scale);
            norm.beta = of_images_of(v.beta);
            const Tensor x = s.activation(e, v.x);
            const Array sums = doubles(s, 2 * e.n * e.c), d_gamma = s.real(v.gamma), d_beta = s.real(v.beta);  // added to
            s.ops().image_backward_sums(sums, norm, s.activation(e, v.d_y), x);
            s.ops().group_norm_weights(d_gamma, d_beta, norm, sums, x);
            s.ops().group_norm_backward(norm, sums, x, group);
            const std::pair<const char*, Array> all[] = {{"a", norm.a}, {"b", norm.b}, {"d_gamma", d_gamma}, {"d_beta", d_beta}};
            for (const auto& [what, array] : all) out.push_back({fmt::format("{} of groups of {}", what, group), s.read(array), sum});
        }
    });
    add("affine_norm", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        for (const bool both : {true, false}) {
            const Tensor x = s.activation(e, v.x);
            const NormCoefficients to = unwritten_norm(s, e.c);
            const Array sums = doubles(s, 2 * e.c), d_loc = s.real(v.gamma), d_scale = s.real(v.beta);  // added to
            s.ops().affine_norm(to, s.real(v.mean), both ? s.real(v.scale) : Array{});
            const std::pair<const char*, Array> all[] = {
                {"mean", to.mean}, {"inv_std", to.inv_std}, {"scale", to.scale}, {"beta", to.beta}, {"a", to.a}, {"b", to.b}};
            for (const auto& [what, array] : all) out.push_back({what, s.read(array), element});
            s.ops().norm_backward_own_sums(sums, coefficients(s, v), {}, {}, s.activation(e, v.d_y), x);
            s.ops().affine_weights(d_loc, both ? d_scale : Array{}, to, sums);
            out.push_back({"d_loc", s.read(d_loc), sum});
            out.push_back({"d_scale", s.read(d_scale), sum});
        }
    });
    add("affine_of_moments", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        if (e.n * e.h * e.w == 1) return;  // no deviation
        const Tensor x = s.activation(e, v.x);
        const Array moments = doubles(s, 2 * e.c), loc = s.unwritten(e.c), scale = s.unwritten(e.c);
        s.ops().batch_norm_moments(moments, x);
        s.ops().affine_of_moments(loc, scale, moments, x);
        out.push_back({"loc", s.read(loc), sum});
        out.push_back({"scale", s.read(scale), sum});
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
    add("add_bias", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor x = s.activation(e, v.x), y = s.activation(e), residual = s.activation(e, v.residual);
        s.ops().add_bias(y, x, s.real(v.beta), &residual);
        out.push_back({"y with residual", s.read(y), element});
        s.ops().add_bias(x, x, s.real(v.beta), nullptr);
        out.push_back({"y in place", s.read(x), element});
    });
    add("mean_pool", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor y = s.flat({e.n, e.c, 1, 1});
        s.ops().mean_pool(y, s.activation(e, v.x));
        out.push_back({"y", s.read(y), sum});
        s.ops().mean_pool(y, s.activation(e, v.x), PoolOver::sum);
        out.push_back({"sum", s.read(y), sum});
    });
    add("mean_pool_backward", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor d_x = s.activation(e);
        s.ops().mean_pool_backward(d_x, s.flat({e.n, e.c, 1, 1}, Values(v.d_y.begin(), v.d_y.begin() + e.n * e.c)));
        out.push_back({"d_x", s.read(d_x), element});
    });
    add("pool", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        for (const auto& [how, name] : {std::pair{Pooling{.kind = PoolKind::max}, "maximum"},
                                        {Pooling{.kind = PoolKind::average}, "average"},
                                        {Pooling{.kind = PoolKind::average, .count_padding = false}, "average of the values alone"}}) {
            Pooling p = how;
            p.rows = {.kernel = 2, .stride = 1, .padding = 1};
            p.columns = {.kernel = 3, .stride = 2, .padding = 1};
            const Extent to = {e.n, e.c, p.rows.outputs(e.h), p.columns.outputs(e.w)};
            const Tensor x = s.activation(e, v.x), y = s.activation(to), d_x = s.activation(e);
            s.ops().pool(y, x, p);
            s.ops().pool_backward(d_x, s.activation(to, Numbers(31).many(to.count(), -1, 1)), x, p);
            out.push_back({name, s.read(y), sum});
            out.push_back({fmt::format("d_x of {}", name), s.read(d_x), sum});
        }
    });
    add("concatenate", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Extent more = {e.n, 5, e.h, e.w}, whole = {e.n, e.c + 5, e.h, e.w};
        const Tensor parts[] = {s.activation(e, v.x), s.activation(more, Numbers(32).many(more.count(), -1, 1))};
        const Tensor back[] = {s.activation(e), s.activation(more)}, y = s.activation(whole);
        s.ops().concatenate(y, parts);
        s.ops().concatenate_backward(back, y);
        out.push_back({"y", s.read(y), kExact});
        for (const Tensor& part : back) out.push_back({"part", s.read(part), kExact});
    });
    add("dropout", [=](Outputs& out, Side& s, const Extent& e, const NormNumbers& v) {
        const Tensor x = s.activation(e, v.x), y = s.activation(e);
        IterationState later;
        later.iteration = 7;
        later.step = 3;
        s.ops().dropout(y, x, s.state(later), {.rate = 0.3, .seed = 11, .layer = 5, .pass = 2, .first_image = 64});
        out.push_back({"y", s.read(y), element});
    });
}

// Where the cases have their scalars in the state.
constexpr EnergyScalars kEnergy = {.f_pos = 3, .f_neg = 5, .loss = 2, .loss_real = 9};
constexpr ClassificationScalars kClassification = {.loss = 7, .accuracy = 1};
constexpr ChainScalars kChain = {.norm = 4, .way = 6, .clamped = 8};

// The fields of a state, one output each: they differ in size.
void add_state(Outputs& out, const std::string& how, const IterationState& s, const Bound& bound) {
    const std::pair<const char*, Values> fields[] = {
        {"iteration", {static_cast<double>(s.iteration)}},
        {"attempt", {static_cast<double>(s.attempt)}},
        {"step", {static_cast<double>(s.step)}},
        {"learning_rate", {s.learning_rate}},
        {"adam_rate and root", {s.adam_rate, s.adam_root}},
        {"f_pos", {s.scalars[kEnergy.f_pos][0], s.scalars[kEnergy.f_pos][1]}},
        {"f_neg", {s.scalars[kEnergy.f_neg][0], s.scalars[kEnergy.f_neg][1]}},
        {"loss_gen", {s.scalars[kEnergy.loss][0], s.scalars[kEnergy.loss][1]}},
        {"loss_clf", {s.scalars[kClassification.loss][0], s.scalars[kClassification.loss][1]}},
        {"accuracy", {s.scalars[kClassification.accuracy][0]}},
        {"grad_norm", {s.grad_norm}},
        {"perturb_scale", {s.perturb_scale}},
        {"clip_factor", {s.clip_factor}},
        {"loss_real", {s.scalars[kEnergy.loss_real][0], s.scalars[kEnergy.loss_real][1]}},
        {"sgld_grad_norm", {s.scalars[kChain.norm][0]}},
        {"chain_way", {s.scalars[kChain.way][0]}},
        {"clamped", {s.scalars[kChain.clamped][0]}},
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
    begun.scalars[kEnergy.f_pos][0] = 2.5;
    begun.scalars[kEnergy.f_pos][1] = 1.5;
    begun.scalars[kEnergy.f_neg][0] = -0.5;
    begun.scalars[kEnergy.f_neg][1] = 0.75;

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
                         const auto run = [&](const char* how, const Values& values, EnergyTerm term, SamPass pass, double l2) {
                             IterationState* state = s.state(begun);
                             s.ops().energy_summary(state, s.real(values), term, kEnergy, pass, l2);
                             add_state(out, how, s.read(state), scalar);
                         };
                         Values infinite = lse(), nan = lse();
                         infinite[3] = inf;
                         nan[kRows - 1] = std::nan("");
                         run("positive", lse(), EnergyTerm::positive, SamPass::at_weights, 0.1);
                         run("negative", lse(), EnergyTerm::negative, SamPass::at_weights, 0.1);
                         run("negative, second pass", lse(), EnergyTerm::negative, SamPass::at_perturbed, 0);
                         run("infinite", infinite, EnergyTerm::positive, SamPass::at_weights, 0);
                         run("NaN", nan, EnergyTerm::negative, SamPass::at_weights, 0);
                         run("exploded", Values(kRows, 2e5), EnergyTerm::negative, SamPass::at_weights, 0);
                         return out;
                     }});
    cases.push_back({"energy_backward", [=](Side& s) {
                         Outputs out;
                         for (const EnergyTerm term : {EnergyTerm::sampling, EnergyTerm::positive, EnergyTerm::negative})
                             for (const SamPass pass : {SamPass::at_weights, SamPass::at_perturbed}) {
                                 const Tensor from = s.flat(logits_of, logits()), to = s.flat(logits_of);
                                 const Array sums = s.unwritten(kRows);
                                 s.ops().log_sum_exp(sums, from);
                                 s.ops().energy_backward(to, from, sums, s.state(begun), term, kEnergy, pass, 0.7, 0.1);
                                 out.push_back({"d_logits", s.read(to), {1e-5, 1e-6}});
                                 s.ops().energy_backward(from, from, sums, s.state(begun), term, kEnergy, pass, 1, 0);
                                 out.push_back({"d_logits in place", s.read(from), {1e-5, 1e-6}});
                             }
                         for (const EnergyForm form : {EnergyForm::each, EnergyForm::real, EnergyForm::binary})
                             for (const EnergyTerm term : {EnergyTerm::positive, EnergyTerm::negative})
                                 for (const Array& labels : {Array{}, s.integers(Integers(kRows, 5))}) {
                                     const Tensor from = s.flat(logits_of, logits()), to = s.flat(logits_of, logits());
                                     const Array sums = s.unwritten(kRows);
                                     IterationState* state = s.state(begun);
                                     s.ops().log_sum_exp(sums, from, labels);
                                     s.ops().energy_summary(state, sums, term, kEnergy, SamPass::at_weights, 0.1, form, 2 * kRows);
                                     s.ops().energy_backward(to, from, sums, state, term, kEnergy, SamPass::at_weights, 0.7, 0.1,
                                                             {.form = form, .both = 2 * kRows, .labels = labels, .add = true});
                                     out.push_back({"lse of a form", s.read(sums), {1e-6, 1e-9}});
                                     add_state(out, "of a form", s.read(state), scalar);
                                     out.push_back({"d_logits of a form, added", s.read(to), {1e-5, 1e-6}});
                                 }
                         return out;
                     }});
    cases.push_back({"cross_entropy", [=](Side& s) -> Outputs {
                         Integers labels;
                         for (int64_t i = 0; i < kRows; ++i) labels.push_back(static_cast<int32_t>(i * 5 % kClasses));
                         const Array loss = s.unwritten(kRows), hit = s.unwritten(kRows);
                         const Tensor to = s.flat(logits_of);
                         s.ops().cross_entropy(loss, hit, to, s.flat(logits_of, logits()), s.integers(labels), 0.7);
                         const Array smoothed = s.unwritten(kRows);
                         const Tensor added = s.flat(logits_of, logits());
                         s.ops().cross_entropy(smoothed, hit, added, s.flat(logits_of, logits()), s.integers(labels), 0.7, 0.1, true);
                         return {{"loss", s.read(loss), element},
                                 {"hit", s.read(hit), kExact},
                                 {"d_logits", s.read(to), {1e-5, 1e-6}},
                                 {"smoothed loss", s.read(smoothed), element},
                                 {"d_logits of it, added", s.read(added), {1e-5, 1e-6}}};
                     }});
    cases.push_back({"logits_apart", [=](Side& s) -> Outputs {
                         Integers labels;
                         for (int64_t i = 0; i < kRows; ++i) labels.push_back(static_cast<int32_t>(i * 5 % kClasses));
                         const Array value = s.unwritten(kRows);
                         const Tensor to = s.flat(logits_of);
                         s.ops().logits_apart(value, to, s.flat(logits_of, logits()), s.real(Numbers(13).many(kRows * kClasses, -6, 6)),
                                              s.integers(labels));
                         const Array again = s.unwritten(kRows);
                         const Tensor same = s.flat(logits_of, logits());
                         s.ops().logits_apart(again, same, same, s.real(Numbers(13).many(kRows * kClasses, -6, 6)), s.integers(labels));
                         return {{"value", s.read(value), element},
                                 {"d_logits", s.read(to), {1e-5, 1e-6}},
                                 {"value in place", s.read(again), element},
                                 {"d_logits in place", s.read(same), {1e-5, 1e-6}}};
                     }});
    cases.push_back({"separation", [=](Side& s) {
                         Outputs out;
                         const Values real = Numbers(14).many(301, -1, 2);
                         Values drawn = Numbers(15).many(97, -2, 1);
                         drawn.front() = drawn.back() = real.back();  // ties
                         IterationState* state = s.state();
                         s.ops().separation(state, s.real(real), s.real(drawn), kChain.norm);
                         add_state(out, "AUROC", s.read(state), scalar);
                         return out;
                     }});
    cases.push_back({"class_logit", [=](Side& s) -> Outputs {
                         Integers labels;
                         for (int64_t i = 0; i < kRows; ++i) labels.push_back(static_cast<int32_t>(i * 5 % kClasses));
                         const Array value = s.unwritten(kRows);
                         const Tensor to = s.flat(logits_of);
                         s.ops().class_logit(value, to, s.flat(logits_of, logits()), s.integers(labels));
                         const Array energy = s.unwritten(kRows);
                         const Tensor of_energy = s.flat(logits_of);
                         s.ops().class_logit(energy, of_energy, s.flat(logits_of, logits()), s.integers(labels), -1);
                         return {{"value", s.read(value), kExact},
                                 {"d_logits", s.read(to), kExact},
                                 {"energy", s.read(energy), kExact},
                                 {"d_logits of the energy", s.read(of_energy), kExact}};
                     }});
    cases.push_back({"classification_summary", [=](Side& s) {
                         Outputs out;
                         Values hits(kRows), nan = lse();
                         hits[2] = hits[5] = 1;
                         nan[0] = std::nan("");
                         for (const auto& [losses, pass] :
                              {std::pair{lse(), SamPass::at_weights}, {lse(), SamPass::at_perturbed}, {nan, SamPass::at_weights}}) {
                             IterationState* state = s.state(begun);
                             s.ops().classification_summary(state, s.real(losses), s.real(hits), kClassification, pass);
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
    state.adam_rate = state.learning_rate / 0.271;
    state.adam_root = std::sqrt(0.003);
    return state;
}

IterationState diverged_state() {
    IterationState state = in_iteration(3);
    state.diverged = 1;
    return state;
}

void add_sampling_cases(std::vector<Case>& cases, const Limits& limits) {
    const Bound scalar = limits.scalar;
    const Bound between = {0, 1e-6};  // f32's roundings of places, and of sums of values below 1
    const Bound draw = {0, 1e-5};     // logarithm, root and polynomials of Box-Muller, in f32 on every device

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
    cases.push_back({"metropolis", [=](Side& s) {
                         Outputs out;
                         constexpr int64_t kImages = 5, kRow = 189;
                         Numbers random(35);
                         Values x = random.many(kImages * kRow, -1, 1), y = random.many(kImages * kRow, -5, 5), g(x.size()), g_y(x.size());
                         const Array folded = s.real(y);
                         s.ops().reflect(folded);
                         out.push_back({"x reflected", s.read(folded), between});
                         // proposals that are to be taken and refused by a wide margin, and one that is not finite
                         const Values value(kImages), value_y = {500, -500, 500, -500, std::nan("")};
                         for (const bool reflected : {true, false}) {
                             for (size_t i = 0; i < y.size(); ++i) y[i] = static_cast<float>(x[i] + 0.01 * random.one(-1, 1));
                             for (const uint32_t step : {0u, 3u}) {
                                 const Array accepted = s.integers(Integers(kImages, -1));
                                 s.ops().metropolis(
                                     accepted, {s.real(x), s.real(g), s.real(value)}, {s.real(y), s.real(g_y), s.real(value_y)},
                                     s.state(in_iteration(7, step)),
                                     {.step_size = 0.5, .noise = 0.4, .grad_clamp = 1, .pixel_clamp = reflected, .seed = kSeed});
                                 out.push_back({"accepted", s.read(accepted), kExact});
                             }
                         }
                         return out;
                     }});
    cases.push_back({"steps of an attack", [=](Side& s) {
                         Outputs out;
                         constexpr int64_t kImages = 3, kRow = 189;
                         Numbers random(33);
                         const Values x = random.many(kImages * kRow, -1, 1), centre = random.many(kImages * kRow, -1, 1);
                         Values g = random.many(kImages * kRow, -3, 3);
                         std::fill_n(g.begin() + kRow, kRow, 0.0);  // an image without a gradient
                         const Array linf = s.real(x), l2 = s.real(x), norms = s.unwritten(kImages);
                         s.ops().sign_step(linf, s.real(g), s.real(centre), 0.1, 0.25);
                         out.push_back({"x by signs", s.read(linf), between});
                         s.ops().normalised_step(l2, s.real(g), norms, 0.5);
                         out.push_back({"x by normalised gradients", s.read(l2), between});
                         s.ops().project_on_ball(l2, s.real(centre), norms, 2);
                         out.push_back({"x in the ball", s.read(l2), between});
                         const Array scaled = s.real(x), before = s.real(centre), scales = s.real({0.5, 1, 2});
                         s.ops().sign_step(scaled, s.real(g), s.real(centre), 0.1, 0.5, scales);
                         out.push_back({"x by signs and sizes", s.read(scaled), between});
                         s.ops().normalised_step(scaled, s.real(g), norms, 0.5, scales);
                         out.push_back({"x by gradients and sizes", s.read(scaled), between});
                         s.ops().momentum_step(scaled, before, s.real(x), 0.75);
                         out.push_back({"x with momentum", s.read(scaled), between});
                         out.push_back({"x of before", s.read(before), between});
                         const Array start = s.unwritten(std::ssize(x)), given = s.unwritten(std::ssize(x));
                         s.ops().attack_start(start, s.real(x), {}, s.state(in_iteration(7)), 0.3, kSeed, 6);
                         out.push_back({"x where an attack starts", s.read(start), between});
                         s.ops().attack_start(given, s.real(x), s.real(centre), s.state(in_iteration(7)), 0.3, kSeed, 0);
                         out.push_back({"x where a given one starts", s.read(given), between});
                         s.ops().copy_images(scaled, s.real(g), s.integers({1, 0, -7}));
                         out.push_back({"x of marked images", s.read(scaled), between});
                         return out;
                     }});
    cases.push_back(
        {"resize", [=](Side& s) {
             Outputs out;
             const Extent from = {2, 3, 5, 4}, grey = {2, 1, 5, 4}, to = {2, 3, 7, 3};
             for (const ResizeFrom places : {ResizeFrom::pixel_centres, ResizeFrom::pixel_corners})
                 for (const Extent& e : {from, grey}) {
                     const Tensor y = s.flat(to);
                     s.ops().resize(y, s.flat(e, Numbers(34).many(e.count(), -1, 1)), {.from = places, .scale = 0.9, .offset = 0.1});
                     out.push_back({fmt::format("y of {} channels, {}", e.c, places == ResizeFrom::pixel_centres ? "centres" : "corners"),
                                    s.read(y), between});
                 }
             return out;
         }});
    cases.push_back({"sgld_gradient_norm", [=](Side& s) {
                         Outputs out;
                         Values g = Numbers(32).many(5001, -1, 1);
                         g.back() = 2;  // if any is left out, it is the last
                         for (const char* how : {"finite", "NaN"}) {
                             IterationState* state = s.state(in_iteration(1));
                             s.ops().sgld_gradient_norm(state, s.real(g), 3, kChain.norm);
                             add_state(out, how, s.read(state), scalar);
                             g[4999] = std::nan("");
                         }
                         return out;
                     }});
    cases.push_back({"draw_chains", [=](Side& s) -> Outputs {
                         const Array index = s.integers(Integers(301, -7)), fresh = s.integers(Integers(301, -7));
                         s.ops().draw_chains(index, fresh, s.state(in_iteration(9)), 10007, 11, 0.3, kSeed);
                         const Array labels = s.integers(Integers(301, -7));
                         s.ops().draw_labels(labels, s.state(in_iteration(9)), 11, kSeed);
                         const Array own = s.integers(Integers(301, -7)), fresh_own = s.integers(Integers(301, -7));
                         s.ops().draw_chains(own, fresh_own, s.state(in_iteration(9)), 10007, 11, 0.3, kSeed,
                                             {.labels = labels, .classes = 11, .first = 301});
                         return {{"index", s.read(index), kExact},
                                 {"fresh", s.read(fresh), kExact},
                                 {"labels", s.read(labels), kExact},
                                 {"index of classes", s.read(own), kExact},
                                 {"fresh of classes", s.read(fresh_own), kExact}};
                     }});
    cases.push_back(
        {"start_images", [=](Side& s) {
             Outputs out;
             const ResidentImages images = resident(s, 3);
             const int64_t pixels = images.pixels_per_image();
             const Integers fresh = {-1, 0, 2, 1, -1, 0}, index = {3, 0, 0, 0, 1, 0};
             const auto chains = static_cast<int64_t>(fresh.size());
             const Array buffer = s.real(Numbers(33).many(5 * pixels, -1, 1));
             for (const StartForm form : {StartForm::informative, StartForm::uniform}) {
                 const Array x = s.unwritten(chains * pixels);
                 StartScratch scratch;
                 if (form != StartForm::uniform)
                     scratch = {s.unwritten(chains * images.largest_class),
                                {s.scratch(static_cast<size_t>(chains) * sizeof(double)), DType::f64, chains}};
                 s.ops().start_images(
                     x, buffer, s.integers(index), s.integers(fresh), scratch, images, s.state(in_iteration(4)),
                     {.first_chain = 3, .weights = RandomStream::init_weights, .pixels = RandomStream::init_pixels, .seed = kSeed});
                 out.push_back({name_of(form), s.read(x), {0, 5e-5}});  // sums of up to 8 images of 255
             }
             return out;
         }});
    cases.push_back(
        {"draw_starts", [=](Side& s) {
             Outputs out;
             const ResidentImages images = resident(s, 1);
             for (const bool augmented : {false, true}) {
                 const Array draws = s.integers(Integers(301 * sizeof(ImageDraw) / sizeof(int32_t), -7));
                 s.ops().draw_starts(
                     {draws.data, DType::u8, static_cast<int64_t>(draws.bytes())}, images.count, s.state(in_iteration(4)),
                     {.first_chain = 3, .weights = RandomStream::init_weights, .pixels = RandomStream::init_pixels, .seed = kSeed},
                     augmented, augmented);
                 out.push_back({augmented ? "augmented" : "plain", s.read(draws), kExact});
             }
             return out;
         }});
    cases.push_back(
        {"start_factors", [=](Side& s) {
             Outputs out;
             const ResidentImages images = resident(s, 3);
             const int64_t pixels = images.pixels_per_image();
             const ClassStarts starts = {.begin = 1,
                                         .size = 6,
                                         .starts = 5,
                                         .draws = {.first_chain = 3,
                                                   .weights = RandomStream::buffer_fill_weights,
                                                   .pixels = RandomStream::buffer_fill_pixels,
                                                   .seed = kSeed}};
             const IterationState* state = s.state(in_iteration(4));
             for (const int64_t first : {0, 4}) {
                 const Tensor z = s.flat({4, 7, 1, 1}), x = s.flat({4, pixels + 3, 1, 1});
                 s.ops().start_factors(z, x, images, state, starts, first);
                 out.push_back({fmt::format("z from {}", first), s.read(z), draw});
                 out.push_back({fmt::format("x from {}", first), s.read(x), draw});
             }
             const Array x = s.unwritten(starts.starts * pixels);
             s.ops().starts_of_product(x, s.flat({7, pixels + 3, 1, 1}, Numbers(36).many(7 * (pixels + 3), -1, 1)), state, starts);
             out.push_back({"starts", s.read(x), draw});
             return out;
         }});
    cases.push_back({"chain_summary", [=](Side& s) {
                         Outputs out;
                         Values x = Numbers(32).many(5001, -1, 1);
                         const Values start = Numbers(36).many(5001, -1, 1);
                         x.back() = 1;  // if any is left out, it is the last
                         IterationState* state = s.state(in_iteration(1));
                         s.ops().chain_summary(state, s.real(x), s.real(start), 3, kChain);
                         add_state(out, "way and share", s.read(state), scalar);
                         return out;
                     }});
    cases.push_back({"store_births", [=](Side& s) {
                         Outputs out;
                         for (const IterationState& state : {in_iteration(1), diverged_state()}) {
                             const Array births = s.integers({9, 9, 9, 9, 9, 9});
                             s.ops().store_births(births, s.integers({5, 2, 5, 0}), s.integers({3, 1, -1, 0}), s.state(state));
                             out.push_back({"births", s.read(births), kExact});
                         }
                         return out;
                     }});
    cases.push_back({"places_of_oldest, store_born", [=](Side& s) {
                         Outputs out;
                         const IterationState state = in_iteration(3);
                         const Array births = s.integers({9, 8, 7, 6, 5}), places = s.integers({0, 0, 0}), born = s.integers({0, 0, 0});
                         s.ops().places_of_oldest(places, born, births, s.integers({4, 0, 2}), s.integers({-1, 1, -1}), s.state(state));
                         s.ops().store_born(births, places, born, s.state(state));
                         for (const Array& a : {births, places, born}) out.push_back({"births, places, born", s.read(a), kExact});
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
                                                 {.order = RandomStream::labelled_order,
                                                  .augment = RandomStream::labelled_augment,
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
                                                   {.order = RandomStream::labelled_order,
                                                    .augment = RandomStream::labelled_augment,
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

void add_parameter_cases(std::vector<Case>& cases, const Limits& limits, const std::vector<int64_t>& counts) {
    const Bound scalar = limits.scalar;
    const Bound element = {2e-6, 1e-6};  // parameters are never narrower than f32
    const auto numbers = [](int64_t n, uint64_t seed, double low, double high) { return Numbers(seed).many(n, low, high); };

    cases.push_back({"fill_zero", [=](Side& s) {
                         Outputs out;
                         for (const int64_t n : counts) {
                             const Array x = s.unwritten(n);
                             s.ops().fill_zero(x);
                             out.push_back({"x", s.read(x), kExact});
                         }
                         return out;
                     }});
    cases.push_back({"convert, accumulate", [=](Side& s) {
                         Outputs out;
                         for (const int64_t n : counts) {
                             const Values values = numbers(n, 39, -1, 1);
                             const Array narrow = s.activations(Values(values.size(), std::nan(""))), wide = s.unwritten(n);
                             const Array sum = s.real(numbers(n, 40, -1, 1));
                             s.ops().convert(narrow, s.real(values));
                             s.ops().convert(wide, narrow);
                             s.ops().accumulate(sum, narrow);
                             s.ops().accumulate(sum, wide);
                             out.push_back({"converted", s.read(narrow), limits.element});
                             out.push_back({"converted back", s.read(wide), limits.element});
                             out.push_back({"sum", s.read(sum), limits.sum});
                         }
                         return out;
                     }});
    cases.push_back({"gradient_norm", [=](Side& s) {
                         Outputs out;
                         for (const SamForm form : {SamForm::none, SamForm::sam, SamForm::asam, SamForm::asam_sign})
                             for (const SamPass pass : {SamPass::at_weights, SamPass::at_perturbed})
                                 for (const int64_t n : counts) {
                                     IterationState* state = s.state(in_iteration(2));
                                     Values g = numbers(n, 41, -1, 1);
                                     g.back() = 2;  // if any is left out, it is the last
                                     s.ops().gradient_norm(state, s.real(g), s.real(numbers(n, 42, -1, 1)), form, 0.2, pass);
                                     add_state(out, fmt::format("{} of {}", name_of(form), n), s.read(state), scalar);
                                 }
                         Values nan = numbers(1003, 41, -1, 1);
                         nan[1002] = std::nan("");
                         IterationState* state = s.state(in_iteration(2));
                         s.ops().gradient_norm(state, s.real(nan), s.real(numbers(1003, 42, -1, 1)), SamForm::sam, 0.2,
                                               SamPass::at_perturbed);
                         add_state(out, "NaN", s.read(state), scalar);
                         return out;
                     }});
    cases.push_back({"sam_perturb", [=](Side& s) {
                         Outputs out;
                         IterationState state = in_iteration(2);
                         state.perturb_scale = 0.37;
                         for (const SamForm form : {SamForm::sam, SamForm::asam, SamForm::asam_sign})
                             for (const int64_t n : counts) {
                                 const Array to = s.unwritten(n);
                                 Values g = numbers(n, 44, -1, 1);
                                 g[0] = 0;
                                 s.ops().sam_perturb(to, s.real(numbers(n, 43, -1, 1)), s.real(g), s.state(state), form);
                                 out.push_back({name_of(form), s.read(to), element});
                             }
                         return out;
                     }});
    const auto update = [&cases, &counts, numbers, element](const char* name, auto run) {
        cases.push_back({name, [=](Side& s) {
                             Outputs out;
                             for (const int64_t n : counts)
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
    update("adam_update", [](Side& s, Array w, Array m, Array v, Array g, IterationState* state) {
        s.ops().adam_update(w, m, v, g, state, {.weight_decay = 5e-4});
    });
    update("adam_update of clamped gradients", [](Side& s, Array w, Array m, Array v, Array g, IterationState* state) {
        s.ops().adam_update(w, m, v, g, state, {.weight_decay = 5e-4, .beta1 = 0, .clamp = 0.1});
    });
    cases.push_back(
        {"spectral_norm, spectral_backward, keep_estimate", [=](Side& s) {
             Outputs out;
             for (const auto& size : {std::pair<int64_t, int64_t>{1, 1}, {16, 27}, {33, 144}, {128, 1152}})
                 for (const SpectralForm form : {SpectralForm::full, SpectralForm::cap}) {
                     const int64_t rows = size.first, columns = size.second, n = rows * columns;
                     const Array w = s.real(numbers(n, 49, -1, 1)), normalised = s.unwritten(n), g = s.real(numbers(n, 50, -1, 1));
                     const Array u = s.real(numbers(rows, 51, 0.5, 1));
                     const SpectralNorm norm = {.u = s.unwritten(rows),
                                                .v = s.unwritten(columns),
                                                .scalars = {s.scratch(kSpectralScalars * sizeof(double)), DType::f64, kSpectralScalars},
                                                .form = form};
                     s.ops().spectral_norm(norm, normalised, w, u);
                     s.ops().spectral_backward(norm, g, w);
                     s.ops().keep_estimate(u, norm, s.state(diverged_state()));
                     out.push_back({"u after divergence", s.read(u), kExact});
                     s.ops().keep_estimate(u, norm, s.state());
                     const std::pair<const char*, Array> all[] = {
                         {"v", norm.v}, {"u", u}, {"scalars", norm.scalars}, {"normalised weights", normalised}, {"gradient", g}};
                     for (const auto& [what, array] : all)
                         if (n > 1 || array.data != g.data)  // one weight's gradient is 0: only roundings are left of it
                             out.push_back({what, s.read(array), element});
                 }
             return out;
         }});
    update("ema_update", [](Side& s, Array w, Array m, Array, Array, IterationState* state) { s.ops().ema_update(m, w, state, 0.99); });
    cases.push_back({"begin_iteration", [=](Side& s) {
                         Outputs out;
                         IterationState* state = s.state(in_iteration(3, 2));
                         s.ops().begin_iteration(state, 70000, 0.02, 0.1, 0.001, 3);
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
                         s.device().take(s.device().read_back(s.state(in_iteration(77)), sizeof back), &back);
                         return {{"copy", s.read(to), kExact}, {"read_back", {static_cast<double>(back.iteration)}, kExact}};
                     }});
}

}  // namespace

std::vector<Case> op_cases(const Limits& limits, const Sizes& sizes) {
    std::vector<Case> cases;
    add_norm_cases(cases, limits, sizes.extents);
    add_loss_cases(cases, limits);
    add_sampling_cases(cases, limits);
    add_parameter_cases(cases, limits, sizes.counts);
    return cases;
}

}  // namespace jem::selftest
