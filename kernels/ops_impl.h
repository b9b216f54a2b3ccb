// Ops, once for all devices: each op is a functor handed to one of four primitives of Exec:
//   for_each(label, count, functor)                            functor(i)
//   for_each(label, layout, functor, out, in...)               functor(out_i, in_i...), operands of operands.h
//   column_reduce(label, layout, functor, in...)               functor.map, then functor.finish(channel, sums)
//   reduce(label, count, functor, in...)                       functor.map, then functor.finish(sums)
// Sums are taken in an order that depends on the shape alone.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <type_traits>

#include "kernels/norm.h"
#include "kernels/operands.h"
#include "kernels/ops.h"
#include "kernels/pool.h"
#include "kernels/weight_tiles.h"
#include "kernels/winograd.h"

namespace jem {

template <class R>
struct FillZero {
    template <class Y>
    JEM_HD void operator()(Y&& y) const {
        y = R(0);
    }
};

template <class R>
struct Copy {
    template <class Y>
    JEM_HD void operator()(Y&& y, R x) const {
        y = x;
    }
};

template <class R>
struct Accumulate {
    template <class Y>
    JEM_HD void operator()(Y&& sum, R x) const {
        sum += x;
    }
};

template <class To, class From>
struct TurnWeights {
    To* to;            // [columns, taps, rows]
    const From* from;  // [rows, taps, columns]
    int64_t rows, taps, columns;

    JEM_HD void operator()(int64_t i) const {
        const int64_t row = i % rows, tap = i / rows % taps, column = i / (rows * taps);
        to[i] = static_cast<To>(from[(row * taps + taps - 1 - tap) * columns + column]);
    }
};

template <class To, class From>
struct TileWeights {
    To* to;            // as tiles of [rows, taps, columns], turned of [columns, taps, rows]
    const From* from;  // [rows, taps, columns]
    int64_t rows, taps, columns;
    bool turned;

    JEM_HD void operator()(int64_t i) const {
        const int64_t in = i % kTileSlice, row8 = i / kTileSlice % kTileRows,
                      slice = i / (kTileSlice * kTileRows) % (kTileColumns / kTileSlice), tile = i / (kTileRows * kTileColumns),
                      tiles_of_rows = (turned ? columns : rows) / kTileRows;
        const int64_t row = tile % tiles_of_rows * kTileRows + row8, tap = tile / tiles_of_rows % taps,
                      column = tile / tiles_of_rows / taps * kTileColumns + slice * kTileSlice + in;
        to[i] = static_cast<To>(from[turned ? (column * taps + taps - 1 - tap) * columns + row : (row * taps + tap) * columns + column]);
    }
};

// y = x + residual + bias
template <class R>
struct AddBias {
    template <class Y>
    JEM_HD void operator()(Y&& y, R x, R residual, R bias) const {
        y = x + bias + residual;
    }
};

struct BeginIteration {
    IterationState* state;
    uint32_t iteration;
    double learning_rate, adam_correction1, adam_correction2;
    uint64_t attempt;

    JEM_HD void operator()(int64_t) const {
        state->iteration = iteration;
        state->step = 0;
        state->attempt = attempt;
        state->learning_rate = learning_rate;
        state->adam_rate = learning_rate / adam_correction1;
        state->adam_root = std::sqrt(adam_correction2);
    }
};

struct AdvanceStep {
    IterationState* state;
    JEM_HD void operator()(int64_t) const { ++state->step; }
};

// R: parameters, gradients, images, logits. A: activations.
template <class Exec, class R, class A>
class OpsOn final : public Ops {
public:
    explicit OpsOn(Exec exec) : exec_(exec) {}

    void batch_norm_statistics(const NormCoefficients& out, const Tensor& x, const BatchNormParameters& p, RunningStatistics running,
                               const IterationState* state) override {
        const Layout l = x.layout();
        exec_.column_reduce(
            "batch_norm_statistics", l,
            BatchNormStatistics<R, A>{
                .out = norm_of_batch(out, p, running, state), .first = x.as<A>(), .rows = l.rows, .block = l.block, .count = values_of(l)},
            In<A>{x.as<A>()}, FirstOfChannel<A>{x.as<A>(), l.rows, l.block});
    }
    void batch_norm_of_sums(const NormCoefficients& out, Array sums, const Tensor& x, const BatchNormParameters& p,
                            RunningStatistics running, const IterationState* state) override {
        const Layout l = x.layout();
        exec_.for_each("batch_norm_of_sums", l.channels(),
                       BatchNormOfSums<R>{.out = norm_of_batch(out, p, running, state),
                                          .sums = sums.as<R>(),
                                          .centre = p.running_mean.as<R>(),
                                          .channels = l.channels(),
                                          .count = values_of(l)});
    }
    void batch_norm_moments(Array moments, const Tensor& x) override {
        const Layout l = x.layout();
        double* out = moments.as<double>();
        exec_.column_reduce(
            "batch_norm_moments", l,
            BatchNormMoments<R, A>{
                .mean = out, .m2 = out + l.channels(), .first = x.as<A>(), .rows = l.rows, .block = l.block, .count = values_of(l)},
            In<A>{x.as<A>()}, FirstOfChannel<A>{x.as<A>(), l.rows, l.block});
    }
    void join_moments(const NormCoefficients& out, Array all, const Tensor& x, const BatchNormParameters& p, RunningStatistics running,
                      const IterationState* state) override {
        const Layout l = x.layout();
        exec_.for_each("join_moments", l.channels(),
                       JoinMoments<R>{.out = norm_of_batch(out, p, running, state),
                                      .moments = all.as<double>(),
                                      .ranks = all.count / (2 * l.channels()),
                                      .channels = l.channels(),
                                      .count = values_of(l)});
    }
    void running_norm_coefficients(const NormCoefficients& out, const BatchNormParameters& p) override {
        exec_.for_each("running_norm_coefficients", out.mean.count,
                       RunningNormCoefficients<R>{out.mean.as<R>(), out.inv_std.as<R>(), out.scale.as<R>(), out.a.as<R>(), out.b.as<R>(),
                                                  p.gamma.as<R>(), p.running_mean.as<R>(), p.running_var.as<R>(), p.epsilon});
    }
    void norm_shift(Array shift, const NormCoefficients& norm) override {
        exec_.for_each("norm_shift", flat(shift.count), NormShift<R>{}, Out<R>{shift.as<R>()}, In<R>{norm.mean.as<R>()},
                       In<R>{norm.scale.as<R>()}, In<R>{norm.beta.as<R>()});
    }
    void norm_leaky(const Tensor& y, const Tensor& x, const NormCoefficients& norm) override {
        exec_.for_each("norm_leaky", x.layout(), NormLeaky<R>{static_cast<R>(norm.slope)}, Out<A>{y.as<A>()}, In<A>{x.as<A>()},
                       PerChannel<R>{norm.mean.as<R>()}, PerChannel<R>{norm.scale.as<R>()}, PerChannel<R>{norm.beta.as<R>()});
    }
    void leaky(const Tensor& y, const Tensor& x, double slope) override {
        exec_.for_each("leaky", x.layout(), Leaky<R>{static_cast<R>(slope)}, Out<A>{y.as<A>()}, In<A>{x.as<A>()});
    }
    void norm_backward_sums(const NormCoefficients& norm, Array d_gamma, Array d_beta, const Tensor& d_y, const Tensor& x) override {
        backward_sums("norm_backward_sums", Array{}, norm, d_gamma, d_beta, d_y, x);
    }
    void norm_backward_of_sums(const NormCoefficients& norm, Array d_gamma, Array d_beta, Array sums, const Tensor& x) override {
        exec_.for_each("norm_backward_of_sums", x.c,
                       NormBackwardOfSums<R>{backward_sums_of(Array{}, norm, d_gamma, d_beta, x.layout()), sums.as<R>()});
    }
    void norm_backward_own_sums(Array sums, const NormCoefficients& norm, Array d_gamma, Array d_beta, const Tensor& d_y,
                                const Tensor& x) override {
        backward_sums("norm_backward_own_sums", sums, norm, d_gamma, d_beta, d_y, x);
    }
    void join_backward_sums(const NormCoefficients& norm, Array all, const Tensor& x) override {
        const Layout l = x.layout();
        const int64_t ranks = all.count / (2 * l.channels());
        exec_.for_each("join_backward_sums", l.channels(),
                       JoinBackwardSums<R>{backward_coefficients(norm, values_of(l) * static_cast<double>(ranks)), all.as<double>(), ranks,
                                           l.channels()});
    }
    void image_moments(Array moments, const Tensor& x) override {
        double* const out = moments.as<double>();
        by_images(x, [&](const Layout& l, int64_t first, int64_t offset) {
            const A* from = x.as<A>() + offset;
            exec_.column_reduce("image_moments", l,
                                BatchNormMoments<R, A>{.mean = out + first,
                                                       .m2 = out + x.n * x.c + first,
                                                       .first = from,
                                                       .rows = l.rows,
                                                       .block = l.block,
                                                       .count = values_of(l)},
                                In<A>{from}, FirstOfChannel<A>{from, l.rows, l.block});
        });
    }
    void group_norm(const NormCoefficients& out, Array moments, Array gamma, Array beta, const Tensor& x, int64_t group,
                    double epsilon) override {
        exec_.for_each("group_norm", x.n * (x.c / group),
                       GroupNormCoefficients<R>{.mean = out.mean.as<R>(),
                                                .inv_std = out.inv_std.as<R>(),
                                                .scale = out.scale.as<R>(),
                                                .beta = out.beta.as<R>(),
                                                .gamma = gamma.as<R>(),
                                                .beta_of_channel = beta.as<R>(),
                                                .moments = moments.as<double>(),
                                                .images = x.n,
                                                .channels = x.c,
                                                .group = group,
                                                .rows = static_cast<double>(x.h * x.w),
                                                .epsilon = epsilon});
    }
    void image_backward_sums(Array sums, const NormCoefficients& norm, const Tensor& d_y, const Tensor& x) override {
        double* const out = sums.as<double>();
        by_images(x, [&](const Layout& l, int64_t first, int64_t offset) {
            exec_.column_reduce("image_backward_sums", l,
                                NormBackwardSums<R>{.out = {},
                                                    .own_sums = out + first,
                                                    .d_gamma = nullptr,
                                                    .d_beta = nullptr,
                                                    .channels = x.n * x.c,
                                                    .slope = static_cast<R>(norm.slope)},
                                In<A>{d_y.as<A>() + offset}, In<A>{x.as<A>() + offset}, PerChannel<R>{norm.mean.as<R>() + first},
                                PerChannel<R>{norm.scale.as<R>() + first}, PerChannel<R>{norm.beta.as<R>() + first});
        });
    }
    void group_norm_backward(const NormCoefficients& norm, Array sums, const Tensor& x, int64_t group) override {
        exec_.for_each("group_norm_backward", x.n * (x.c / group),
                       GroupNormBackward<R>{.a = norm.a.as<R>(),
                                            .b = norm.b.as<R>(),
                                            .inv_std = norm.inv_std.as<R>(),
                                            .scale = norm.scale.as<R>(),
                                            .sums = sums.as<double>(),
                                            .images = x.n,
                                            .channels = x.c,
                                            .group = group,
                                            .rows = static_cast<double>(x.h * x.w)});
    }
    void group_norm_weights(Array d_gamma, Array d_beta, const NormCoefficients& norm, Array sums, const Tensor& x) override {
        exec_.for_each("group_norm_weights", x.c,
                       GroupNormWeights<R>{.d_gamma = d_gamma.as<R>(),
                                           .d_beta = d_beta.as<R>(),
                                           .inv_std = norm.inv_std.as<R>(),
                                           .sums = sums.as<double>(),
                                           .images = x.n,
                                           .channels = x.c});
    }
    void affine_norm(const NormCoefficients& out, Array loc, Array scale) override {
        exec_.for_each("affine_norm", out.mean.count,
                       AffineCoefficients<R>{.mean = out.mean.as<R>(),
                                             .inv_std = out.inv_std.as<R>(),
                                             .scale = out.scale.as<R>(),
                                             .beta = out.beta.as<R>(),
                                             .a = out.a.as<R>(),
                                             .b = out.b.as<R>(),
                                             .loc = loc.count > 0 ? loc.as<R>() : nullptr,
                                             .factor = scale.count > 0 ? scale.as<R>() : nullptr});
    }
    void affine_weights(Array d_loc, Array d_scale, const NormCoefficients& norm, Array sums) override {
        exec_.for_each("affine_weights", norm.scale.count,
                       AffineWeights<R>{.d_loc = d_loc.count > 0 ? d_loc.as<R>() : nullptr,
                                        .d_factor = d_scale.count > 0 ? d_scale.as<R>() : nullptr,
                                        .scale = norm.scale.as<R>(),
                                        .sums = sums.as<double>(),
                                        .channels = norm.scale.count});
    }
    void affine_of_moments(Array loc, Array scale, Array all, const Tensor& x) override {
        const Layout l = x.layout();
        exec_.for_each("affine_of_moments", l.channels(),
                       AffineOfMoments<R>{.loc = loc.as<R>(),
                                          .factor = scale.as<R>(),
                                          .moments = all.as<double>(),
                                          .ranks = all.count / (2 * l.channels()),
                                          .channels = l.channels(),
                                          .count = values_of(l)});
    }
    void norm_leaky_backward(const Tensor& d_x, const Tensor& d_y, const Tensor& x, const NormCoefficients& norm,
                             const Tensor* residual) override {
        const auto run = [&](auto added) {
            exec_.for_each("norm_leaky_backward", x.layout(), NormLeakyBackward<R>{static_cast<R>(norm.slope)}, Out<A>{d_x.as<A>()},
                           In<A>{d_y.as<A>()}, In<A>{x.as<A>()}, added, PerChannel<R>{norm.mean.as<R>()}, PerChannel<R>{norm.scale.as<R>()},
                           PerChannel<R>{norm.beta.as<R>()}, PerChannel<R>{norm.a.as<R>()}, PerChannel<R>{norm.b.as<R>()});
        };
        if (residual != nullptr)
            run(In<A>{residual->as<A>()});
        else
            run(Zero<A>{});
    }
    void norm_backward(const Tensor& d_x, const Tensor& dz, const Tensor& x, const NormCoefficients& norm,
                       const Tensor* residual) override {
        const auto run = [&](auto added) {
            exec_.for_each("norm_backward", x.layout(), NormBackward<R>{}, Out<A>{d_x.as<A>()}, In<A>{dz.as<A>()}, In<A>{x.as<A>()}, added,
                           PerChannel<R>{norm.mean.as<R>()}, PerChannel<R>{norm.scale.as<R>()}, PerChannel<R>{norm.a.as<R>()},
                           PerChannel<R>{norm.b.as<R>()});
        };
        if (residual != nullptr)
            run(In<A>{residual->as<A>()});
        else
            run(Zero<A>{});
    }
    void leaky_backward(const Tensor& d_x, const Tensor& d_y, const Tensor& x, const Tensor* residual, double slope) override {
        const auto run = [&](auto added) {
            exec_.for_each("leaky_backward", x.layout(), LeakyBackward<R>{static_cast<R>(slope)}, Out<A>{d_x.as<A>()}, In<A>{d_y.as<A>()},
                           In<A>{x.as<A>()}, added);
        };
        if (residual != nullptr)
            run(In<A>{residual->as<A>()});
        else
            run(Zero<A>{});
    }
    void bias_gradient(Array d_bias, const Tensor& d_y) override {
        const auto run = [&](auto in) { exec_.column_reduce("bias_gradient", d_y.layout(), BiasGradient<R>{d_bias.as<R>()}, in); };
        if (d_y.type == DTypeOf<R>::value)
            run(In<R>{d_y.as<R>()});  // d_logits
        else
            run(In<A>{d_y.as<A>()});
    }
    void add_bias(const Tensor& y, const Tensor& x, Array bias, const Tensor* residual) override {
        const auto run = [&](auto added) {
            exec_.for_each("add_bias", x.layout(), AddBias<R>{}, Out<A>{y.as<A>()}, In<A>{x.as<A>()}, added, PerChannel<R>{bias.as<R>()});
        };
        if (residual != nullptr)
            run(In<A>{residual->as<A>()});
        else
            run(Zero<A>{});
    }
    void mean_pool(const Tensor& y, const Tensor& x, PoolOver over) override {
        const Layout l = x.layout();
        exec_.for_each("mean_pool", y.count(), MeanPool<R, A>{y.as<R>(), x.as<A>(), l.rows, l.block, static_cast<R>(divisor_of(l, over))});
    }
    void mean_pool_backward(const Tensor& d_x, const Tensor& d_y, PoolOver over) override {
        // [N, C] is one value for each of N * C channels
        Layout l = d_x.layout();
        l.blocks = l.planes;
        exec_.for_each("mean_pool_backward", l, MeanPoolBackward<R>{static_cast<R>(1.0 / divisor_of(l, over))}, Out<A>{d_x.as<A>()},
                       PerChannel<R>{d_y.as<R>()});
    }

    void pool(const Tensor& y, const Tensor& x, const Pooling& how) override {
        const auto windows = windows_of(x, y, how);
        side_by_side({x.block, y.block}, [&](auto width) {
            exec_.for_each("pool", y.count() / width(), Pool<R, A, width()>{y.as<A>(), windows});
        });
    }
    void pool_backward(const Tensor& d_x, const Tensor& d_y, const Tensor& x, const Pooling& how) override {
        const auto windows = windows_of(x, d_y, how);
        side_by_side({d_x.block, d_y.block}, [&](auto width) {
            exec_.for_each("pool_backward", d_x.count() / width(), PoolBackward<R, A, width()>{d_x.as<A>(), d_y.as<A>(), windows});
        });
    }
    void concatenate(const Tensor& y, std::span<const Tensor> parts) override { copy_channels("concatenate", y, parts, true); }
    void concatenate_backward(std::span<const Tensor> d_parts, const Tensor& d_y) override {
        copy_channels("concatenate_backward", d_y, d_parts, false);
    }
    void dropout(const Tensor& y, const Tensor& x, const IterationState* state, const DropoutSettings& how) override {
        if (!(how.rate >= 0 && how.rate < 1) || how.layer < 0 || how.layer >= 4096 || how.pass < 0 || how.pass >= 4096)
            throw std::invalid_argument("A dropout was given a rate outside of [0, 1), or too many layers or passes.");
        exec_.for_each("dropout", x.n * x.h * x.w * DropValues<R, A>::fours(x.c),
                       DropValues<R, A>{y.as<A>(), x.as<A>(), places_of(x), state, how, static_cast<float>(1 - how.rate),
                                        static_cast<R>(1 / (1 - how.rate))});
    }

    void log_sum_exp(Array lse, const Tensor& logits, Array labels) override {
        exec_.for_each("log_sum_exp", logits.n, LogSumExp<R>{lse.as<R>(), logits.as<R>(), labels_of(labels), logits.c});
    }
    void energy_summary(IterationState* state, Array lse, EnergyTerm term, EnergyScalars scalars, SamPass pass, double l2, EnergyForm form,
                        int64_t both) override {
        exec_.for_each("energy_summary", 1,
                       EnergySummary<R>{state, lse.as<R>(), lse.count, term, scalars, static_cast<int>(pass), l2, form, both});
    }
    void energy_backward(const Tensor& d_logits, const Tensor& logits, Array lse, const IterationState* state, EnergyTerm term,
                         EnergyScalars scalars, SamPass pass, double weight, double l2, const EnergyGradient& how) override {
        exec_.for_each("energy_backward", logits.n,
                       EnergyBackward<R>{.d_logits = d_logits.as<R>(),
                                         .logits = logits.as<R>(),
                                         .lse = lse.as<R>(),
                                         .labels = labels_of(how.labels),
                                         .state = state,
                                         .count = logits.n,
                                         .classes = logits.c,
                                         .term = term,
                                         .scalars = scalars,
                                         .pass = static_cast<int>(pass),
                                         .weight = weight,
                                         .l2 = l2,
                                         .form = how.form,
                                         .both = how.both,
                                         .add = how.add});
    }
    void cross_entropy(Array loss, Array hit, const Tensor& d_logits, const Tensor& logits, Array labels, double weight, double smoothing,
                       bool add) override {
        exec_.for_each("cross_entropy", logits.n,
                       CrossEntropy<R>{loss.as<R>(), hit.as<R>(), d_logits.as<R>(), logits.as<R>(), labels.as<int32_t>(), logits.n,
                                       logits.c, weight, smoothing, add});
    }
    void class_logit(Array value, const Tensor& d_logits, const Tensor& logits, Array labels, double factor) override {
        exec_.for_each("class_logit", logits.n,
                       ClassLogit<R>{value.as<R>(), d_logits.as<R>(), logits.as<R>(), labels.as<int32_t>(), logits.c, factor});
    }
    void logits_apart(Array value, const Tensor& d_logits, const Tensor& logits, Array start, Array labels) override {
        exec_.for_each("logits_apart", logits.n,
                       LogitsApart<R>{value.as<R>(), d_logits.as<R>(), logits.as<R>(), start.as<R>(), labels.as<int32_t>(), logits.c});
    }
    void separation(IterationState* state, Array real, Array drawn, int scalar) override {
        const double pairs = static_cast<double>(real.count) * static_cast<double>(drawn.count);
        exec_.reduce("separation", real.count, Separation<R>{state, drawn.as<R>(), drawn.count, pairs, scalar}, In<R>{real.as<R>()});
    }
    void classification_summary(IterationState* state, Array loss, Array hit, ClassificationScalars scalars, SamPass pass) override {
        exec_.for_each("classification_summary", 1,
                       ClassificationSummary<R>{state, loss.as<R>(), hit.as<R>(), loss.count, scalars, static_cast<int>(pass)});
    }

    void sgld_step(Array x, Array gradient, Array noise, const IterationState* state, const SgldSettings& s) override {
        const SgldStep<R> step{.x = x.as<R>(),
                               .g = gradient.as<R>(),
                               .noise = noise.count > 0 ? noise.as<R>() : nullptr,
                               .state = state,
                               .count = x.count,
                               .first = s.first,
                               .noise_from = s.noise_from,
                               .step_size = s.step_size,
                               .noise_scale = s.noise,
                               .grad_clamp = s.grad_clamp,
                               .pixel_clamp = s.pixel_clamp,
                               .seed = s.seed};
        exec_.for_each("sgld_step", step.items(), step);
    }
    void attack_start(Array x, Array start, Array u, const IterationState* state, double radius, uint64_t seed, int64_t first) override {
        const RandomWay<R> begin{.x = x.as<R>(),
                                 .start = start.as<R>(),
                                 .u = u.count > 0 ? u.as<R>() : nullptr,
                                 .state = state,
                                 .count = x.count,
                                 .first = first,
                                 .radius = radius,
                                 .seed = seed};
        exec_.for_each("attack_start", begin.items(), begin);
    }
    void reflect(Array x) override { exec_.for_each("reflect", x.count, Reflect<R>{x.as<R>()}); }
    void metropolis(Array accepted, const LangevinPoint& chain, const LangevinPoint& proposal, const IterationState* state,
                    const SgldSettings& s) override {
        const int64_t row = row_of(chain.x, accepted);
        exec_.for_each("metropolis", accepted.count,
                       Metropolis<R>{.accepted = accepted.as<int32_t>(),
                                     .x = chain.x.as<R>(),
                                     .g = chain.gradient.as<R>(),
                                     .value = chain.value.as<R>(),
                                     .y = proposal.x.as<R>(),
                                     .y_g = proposal.gradient.as<R>(),
                                     .y_value = proposal.value.as<R>(),
                                     .state = state,
                                     .row = row,
                                     .first = s.first / row,
                                     .step_size = s.step_size,
                                     .noise_scale = s.noise,
                                     .grad_clamp = s.grad_clamp,
                                     .reflected = s.pixel_clamp,
                                     .seed = s.seed});
    }
    void sign_step(Array x, Array gradient, Array start, double step_size, double radius, Array scales) override {
        exec_.for_each("sign_step", x.count,
                       SignStep<R>{x.as<R>(), gradient.as<R>(), start.as<R>(), scales_of(scales), row_of(x, scales), step_size, radius});
    }
    void normalised_step(Array x, Array gradient, Array norms, double step_size, Array scales) override {
        if (norms.count == 0) return;
        const int64_t row = row_of(x, norms);
        exec_.for_each("gradient_norms", norms.count, RowDistance<R>{norms.as<R>(), gradient.as<R>(), nullptr, row});
        exec_.for_each("normalised_step", x.count,
                       NormalisedStep<R>{x.as<R>(), gradient.as<R>(), norms.as<R>(), scales_of(scales), row, step_size});
    }
    void momentum_step(Array x, Array before, Array ahead, double share) override {
        exec_.for_each("momentum_step", x.count, MomentumStep<R>{x.as<R>(), before.as<R>(), ahead.as<R>(), share});
    }
    void copy_images(Array to, Array from, Array marked) override {
        exec_.for_each("copy_images", to.count, CopyRows<R>{to.as<R>(), from.as<R>(), marked.as<int32_t>(), row_of(to, marked)});
    }
    void project_on_ball(Array x, Array centre, Array norms, double radius) override {
        if (norms.count == 0) return;
        const int64_t row = row_of(x, norms);
        exec_.for_each("distances", norms.count, RowDistance<R>{norms.as<R>(), x.as<R>(), centre.as<R>(), row});
        exec_.for_each("project_on_ball", x.count, ProjectOnBall<R>{x.as<R>(), centre.as<R>(), norms.as<R>(), row, radius});
    }
    void sgld_gradient_norm(IterationState* state, Array gradient, int64_t images, int scalar) override {
        exec_.reduce("sgld_gradient_norm", gradient.count, SgldGradientNorm<R>{state, static_cast<double>(images), scalar},
                     In<R>{gradient.as<R>()});
    }
    void draw_chains(Array index, Array fresh, const IterationState* state, int64_t buffer_size, int64_t classes, double reinit_freq,
                     uint64_t seed, const ChainDraw& how) override {
        exec_.for_each("draw_chains", index.count,
                       DrawChains{.index = index.as<int32_t>(),
                                  .fresh = fresh.as<int32_t>(),
                                  .labels = labels_of(how.labels),
                                  .state = state,
                                  .buffer_size = static_cast<uint32_t>(buffer_size),
                                  .num_classes = static_cast<uint32_t>(classes),
                                  .labelled_classes = static_cast<uint32_t>(how.classes),
                                  .first = how.first,
                                  .reinit_freq = reinit_freq,
                                  .seed = seed});
    }
    void draw_labels(Array labels, const IterationState* state, int64_t classes, uint64_t seed) override {
        exec_.for_each("draw_labels", labels.count, DrawLabels{labels.as<int32_t>(), state, static_cast<uint32_t>(classes), seed});
    }
    void start_images(Array x, Array buffer, Array index, Array fresh, const StartScratch& scratch, const ResidentImages& images,
                      const IterationState* state, const ChainStart& start) override {
        const Array weights = scratch.weights;
        constexpr int kWidth = Exec::kPixelsPerItem;
        const int64_t chains = fresh.count, pixels = x.count / chains, stride = weights.count / chains;
        const int32_t* class_begin = images.class_begin.as<int32_t>();
        if (stride > 0) {
            exec_.for_each("start_weights", chains * ((stride + 3) / 4),
                           StartWeights<R>{weights.as<R>(), fresh.as<int32_t>(), class_begin, state, stride, start.first_chain,
                                           start.weights, start.seed});
            const StartWeightsOfChain<R> of{weights.as<R>(), fresh.as<int32_t>(), class_begin, stride};
            auto* means = scratch.means.as<double>();
            exec_.for_each("start_weights", chains, MeanStartWeights<R>{of, means});
            exec_.for_each("start_weights", chains * ((stride + kWidth - 1) / kWidth), CentreStartWeights<R, kWidth>{of, means});
        }
        exec_.for_each("start_images", chains * ((pixels + kWidth - 1) / kWidth),
                       StartImages<R, kWidth>{.x = x.as<R>(),
                                              .buffer = buffer.as<R>(),
                                              .index = index.as<int32_t>(),
                                              .fresh = fresh.as<int32_t>(),
                                              .weights = stride > 0 ? weights.as<R>() : nullptr,
                                              .images = images.pixels.as<uint8_t>(),
                                              .class_order = images.class_order.as<int32_t>(),
                                              .class_begin = class_begin,
                                              .state = state,
                                              .pixels = pixels,
                                              .stride = stride,
                                              .first_chain = start.first_chain,
                                              .stream = start.pixels,
                                              .seed = start.seed});
    }
    void draw_starts(Array draws, int64_t images, const IterationState* state, const ChainStart& start, bool crop, bool flip) override {
        exec_.for_each("draw_starts", static_cast<int64_t>(draws.bytes() / sizeof(ImageDraw)),
                       DrawStarts{static_cast<ImageDraw*>(draws.data), state, start.first_chain, static_cast<uint32_t>(images),
                                  start.weights, crop ? 1 : 0, flip ? 1 : 0, start.seed});
    }
    void chain_summary(IterationState* state, Array x, Array start, int64_t images, ChainScalars scalars) override {
        exec_.reduce("chain_summary", x.count, ChainSummary<R>{state, static_cast<double>(images), static_cast<double>(x.count), scalars},
                     In<R>{x.as<R>()}, In<R>{start.as<R>()});
    }
    void store_births(Array births, Array index, Array fresh, const IterationState* state) override {
        exec_.for_each("store_births", index.count,
                       StoreBirths{births.as<int32_t>(), index.as<int32_t>(), fresh.as<int32_t>(), state, index.count});
    }
    void places_of_oldest(Array places, Array born, Array births, Array index, Array fresh, const IterationState* state) override {
        exec_.for_each("places_of_oldest", places.count,
                       PlacesOfOldest{.places = places.as<int32_t>(),
                                      .born = born.as<int32_t>(),
                                      .index = index.as<int32_t>(),
                                      .fresh = fresh.as<int32_t>(),
                                      .births = births.as<int32_t>(),
                                      .state = state,
                                      .chains = places.count,
                                      .buffer_size = births.count});
    }
    void store_born(Array births, Array places, Array born, const IterationState* state) override {
        exec_.for_each("store_born", places.count,
                       StoreBorn{births.as<int32_t>(), places.as<int32_t>(), born.as<int32_t>(), state, places.count});
    }
    void store_chains(Array buffer, Array x, Array index, const IterationState* state) override {
        exec_.for_each("store_chains", x.count,
                       StoreChains<R>{buffer.as<R>(), x.as<R>(), index.as<int32_t>(), state, index.count, x.count / index.count});
    }

    void start_factors(const Tensor& z, const Tensor& x, const ResidentImages& images, const IterationState* state, const ClassStarts& s,
                       int64_t first) override {
        exec_.for_each("start_factors", z.n / 4 * z.c,
                       StartFactors<R>{.z = z.as<R>(),
                                       .state = state,
                                       .columns = z.c,
                                       .starts = s.starts,
                                       .first_chain = s.draws.first_chain,
                                       .first = first,
                                       .size = s.size,
                                       .stride = images.largest_class,
                                       .stream = s.draws.weights,
                                       .seed = s.draws.seed});
        constexpr int kWidth = Exec::kPixelsPerItem;
        exec_.for_each("start_factors", x.n * ((x.c + kWidth - 1) / kWidth),
                       StartPixels<R, kWidth>{.x = x.as<R>(),
                                              .images = images.pixels.as<uint8_t>(),
                                              .order = images.class_order.as<int32_t>() + s.begin + first,
                                              .columns = x.c,
                                              .pixels = images.pixels_per_image(),
                                              .count = s.size - first});
    }
    void starts_of_product(Array x, const Tensor& product, const IterationState* state, const ClassStarts& s) override {
        constexpr int kWidth = Exec::kPixelsPerItem;
        const int64_t pixels = x.count / s.starts;
        exec_.for_each("starts_of_product", s.starts * ((pixels + kWidth - 1) / kWidth),
                       StartsOfProduct<R, kWidth>{.x = x.as<R>(),
                                                  .product = product.as<R>(),
                                                  .state = state,
                                                  .rows = product.n,
                                                  .columns = product.c,
                                                  .pixels = pixels,
                                                  .size = s.size,
                                                  .first_chain = s.draws.first_chain,
                                                  .stream = s.draws.pixels,
                                                  .seed = s.draws.seed});
    }

    void draw_images(Array draws, const ResidentImages& images, const IterationState* state, const BatchDraw& d) override {
        const int64_t batch = static_cast<int64_t>(draws.bytes() / sizeof(ImageDraw));
        exec_.for_each("draw_images", batch,
                       DrawImages{static_cast<ImageDraw*>(draws.data), state, static_cast<uint32_t>(d.first),
                                  static_cast<uint32_t>(d.batch > 0 ? d.batch : batch), static_cast<uint32_t>(images.count), d.order,
                                  d.augment, d.crop ? 1 : 0, d.flip ? 1 : 0, d.seed});
    }
    void crop_flip(Array x, Array draws, const ResidentImages& images, const IterationState* state, const BatchDraw& d) override {
        exec_.for_each("crop_flip", x.count,
                       CropFlip<R>{.out = x.as<R>(),
                                   .images = images.pixels.as<uint8_t>(),
                                   .draws = static_cast<const ImageDraw*>(draws.data),
                                   .state = state,
                                   .first = d.first * images.pixels_per_image(),
                                   .height = images.height,
                                   .width = images.width,
                                   .channels = images.channels,
                                   .noise = d.noise,
                                   .noise_stream = RandomStream::input_noise,
                                   .noise_salt = d.noise_salt,
                                   .seed = d.seed});
    }
    void pixel_values(Array x, Array bytes) override {
        exec_.for_each("pixel_values", x.count, PixelValues<R>{x.as<R>(), bytes.as<uint8_t>()});
    }
    void resize(const Tensor& y, const Tensor& x, const Resizing& how) override {
        if (x.n != y.n || (x.c != y.c && x.c != 1) || x.block != x.c || y.block != y.c || x.h < 1 || x.w < 1)
            throw std::invalid_argument("A resizing was given images of which the others cannot be made.");
        exec_.for_each("resize", y.n * y.h * y.w,
                       ResizeImages<R>{.y = y.as<R>(),
                                       .x = x.as<R>(),
                                       .in_height = x.h,
                                       .in_width = x.w,
                                       .in_channels = x.c,
                                       .height = y.h,
                                       .width = y.w,
                                       .channels = y.c,
                                       .from = how.from,
                                       .scale = static_cast<R>(how.scale),
                                       .offset = static_cast<R>(how.offset)});
    }
    void gather_labels(Array labels, Array draws, const ResidentImages& images) override {
        exec_.for_each("gather_labels", labels.count,
                       GatherLabels{labels.as<int32_t>(), images.labels.as<int32_t>(), static_cast<const ImageDraw*>(draws.data)});
    }

    void fill_zero(Array x) override { exec_.for_each("fill_zero", flat(x.count), FillZero<R>{}, Out<R>{x.as<R>()}); }
    void convert(Array to, Array from) override {
        const auto run = [&](auto out, auto in) { exec_.for_each("convert", flat(from.count), Copy<R>{}, out, in); };
        constexpr DType real = DTypeOf<R>::value;
        if (to.type == real && from.type == real)
            run(Out<R>{to.as<R>()}, In<R>{from.as<R>()});
        else if (to.type == real)
            run(Out<R>{to.as<R>()}, In<A>{from.as<A>()});
        else if (from.type == real)
            run(Out<A>{to.as<A>()}, In<R>{from.as<R>()});
        else
            run(Out<A>{to.as<A>()}, In<A>{from.as<A>()});
    }
    void turn_weights(Array to, Array from, int64_t rows, int64_t taps) override {
        const int64_t columns = from.count / (rows * taps);
        const auto run = [&]<class From>(const From* weights) {
            exec_.for_each("turn_weights", to.count, TurnWeights<A, From>{to.as<A>(), weights, rows, taps, columns});
        };
        if (from.type == DTypeOf<R>::value)
            run(from.as<R>());
        else
            run(from.as<A>());
    }
    void tile_weights(Array to, Array from, int64_t rows, int64_t taps, bool turned) override {
        const int64_t columns = from.count / (rows * taps);
        const auto run = [&]<class From>(const From* weights) {
            exec_.for_each("tile_weights", to.count, TileWeights<A, From>{to.as<A>(), weights, rows, taps, columns, turned});
        };
        if (from.type == DTypeOf<R>::value)
            run(from.as<R>());
        else
            run(from.as<A>());
    }
    void winograd_input(Array points, const Tensor& x, Array scale, Array shift, double slope) override {
        const winograd::Tiles tiles = tiles_of(x, points);
        if (scale.count != shift.count || (scale.count != 0 && scale.count != x.c))
            throw std::invalid_argument("A tile's input was given a norm of other channels.");
        exec_.for_each("winograd_input", tiles.count() * tiles.channels,
                       winograd::Input<R>{.points = points.as<R>(),
                                          .x = x.as<R>(),
                                          .tiles = tiles,
                                          .scale = scale.count > 0 ? scale.as<R>() : nullptr,
                                          .shift = shift.count > 0 ? shift.as<R>() : nullptr,
                                          .slope = static_cast<R>(slope)});
    }
    void winograd_output(const Tensor& y, Array points, Array bias, const Tensor* residual) override {
        const winograd::Tiles tiles = tiles_of(y, points);
        if (bias.count != 0 && bias.count != y.c) throw std::invalid_argument("A tile's output was given a bias of other channels.");
        exec_.for_each("winograd_output", tiles.count() * tiles.channels,
                       winograd::Output<R>{.y = y.as<R>(),
                                           .points = points.as<R>(),
                                           .tiles = tiles,
                                           .bias = bias.count > 0 ? bias.as<R>() : nullptr,
                                           .residual = residual != nullptr ? residual->as<R>() : nullptr});
    }
    void winograd_weights(Array points, Array weights, int64_t columns, bool turned) override {
        constexpr int64_t kTaps = 9;
        if (weights.count % (columns * kTaps) != 0 || points.count * kTaps != weights.count * winograd::kPoints)
            throw std::invalid_argument("Points of a filter were given other weights.");
        exec_.for_each("winograd_weights", weights.count / kTaps,
                       winograd::Weights<R>{points.as<R>(), weights.as<R>(), columns, weights.count / kTaps, turned});
    }
    void accumulate(Array sum, Array x) override {
        const auto run = [&](auto in) { exec_.for_each("accumulate", flat(x.count), Accumulate<R>{}, Out<R>{sum.as<R>()}, in); };
        if (x.type == DTypeOf<R>::value)
            run(In<R>{x.as<R>()});
        else
            run(In<A>{x.as<A>()});
    }
    void gradient_norm(IterationState* state, Array gradient, Array weights, SamForm form, double rho, SamPass pass, double clip) override {
        exec_.reduce("gradient_norm", gradient.count, GradientNorm<R>{state, form, rho, pass, clip}, In<R>{gradient.as<R>()},
                     In<R>{weights.as<R>()});
    }
    void sam_perturb(Array perturbed, Array weights, Array gradient, const IterationState* state, SamForm form) override {
        exec_.for_each("sam_perturb", flat(weights.count), SamPerturb<R>{state, form}, Out<R>{perturbed.as<R>()}, In<R>{weights.as<R>()},
                       In<R>{gradient.as<R>()});
    }
    void sgd_update(Array weights, Array velocity, Array gradient, const IterationState* state, double momentum, double weight_decay,
                    bool nesterov) override {
        exec_.for_each("sgd_update", flat(weights.count),
                       SgdUpdate<R>{state, static_cast<R>(momentum), static_cast<R>(weight_decay), nesterov}, Out<R>{weights.as<R>()},
                       Out<R>{velocity.as<R>()}, In<R>{gradient.as<R>()});
    }
    void adam_update(Array weights, Array m, Array v, Array gradient, const IterationState* state, const AdamSettings& how) override {
        const auto run = [&](auto clamps) {
            exec_.for_each("adam_update", flat(weights.count),
                           AdamUpdate<R, clamps.value>{state, static_cast<R>(how.weight_decay), static_cast<R>(1 - how.beta1),
                                                       static_cast<R>(how.clamp)},
                           Out<R>{weights.as<R>()}, Out<R>{m.as<R>()}, Out<R>{v.as<R>()}, In<R>{gradient.as<R>()});
        };
        how.clamp > 0 ? run(std::true_type{}) : run(std::false_type{});
    }
    void ema_update(Array average, Array weights, const IterationState* state, double decay) override {
        exec_.for_each("ema_update", flat(weights.count), EmaUpdate<R>{state, static_cast<R>(decay)}, Out<R>{average.as<R>()},
                       In<R>{weights.as<R>()});
    }

    void spectral_norm(const SpectralNorm& out, Array normalised, Array weights, Array u) override {
        const int64_t rows = u.count, columns = out.v.count;
        double* const scalars = out.scalars.as<double>();
        R *const v = out.v.as<R>(), *const next = out.u.as<R>();
        exec_.for_each("spectral_columns", columns, SpectralColumns<R>{v, weights.as<R>(), u.as<R>(), rows, columns});
        exec_.reduce("spectral_length", columns, Length<R>{scalars + kLengthOfV}, In<R>{v});
        exec_.for_each("spectral_divide", flat(columns), DivideByLength<R>{scalars + kLengthOfV}, Out<R>{v});
        exec_.for_each("spectral_rows", rows, SpectralRows<R>{next, weights.as<R>(), v, columns});
        exec_.reduce("spectral_length", rows, Length<R>{scalars + kSigma}, In<R>{next});
        exec_.for_each("spectral_divide", flat(rows), DivideByLength<R>{scalars + kSigma}, Out<R>{next});
        exec_.for_each("spectral_weights", flat(weights.count), SpectralWeights<R>{{scalars, out.form}}, Out<R>{normalised.as<R>()},
                       In<R>{weights.as<R>()});
    }
    void spectral_backward(const SpectralNorm& norm, Array gradient, Array weights) override {
        double* const scalars = norm.scalars.as<double>();
        exec_.reduce("spectral_along_weights", weights.count, AlongWeights<R>{scalars + kAlongWeights}, In<R>{gradient.as<R>()},
                     In<R>{weights.as<R>()});
        exec_.for_each("spectral_gradient", weights.count,
                       SpectralGradient<R>{gradient.as<R>(), norm.u.as<R>(), norm.v.as<R>(), norm.v.count, {scalars, norm.form}});
    }
    void keep_estimate(Array u, const SpectralNorm& norm, const IterationState* state) override {
        exec_.for_each("keep_estimate", flat(u.count), KeepUnlessDiverged<R>{state}, Out<R>{u.as<R>()}, In<R>{norm.u.as<R>()});
    }

    void begin_iteration(IterationState* state, uint32_t iteration, double learning_rate, double adam_correction1, double adam_correction2,
                         uint64_t attempt) override {
        exec_.for_each("begin_iteration", 1, BeginIteration{state, iteration, learning_rate, adam_correction1, adam_correction2, attempt});
    }
    void advance_step(IterationState* state) override { exec_.for_each("advance_step", 1, AdvanceStep{state}); }
    void agree_on_state(IterationState* state, Array states, Agreement when, ChainScalars chain) override {
        const int64_t ranks = states.count / static_cast<int64_t>(sizeof(IterationState));
        exec_.for_each("agree_on_state", 1, AgreeOnState{state, static_cast<const IterationState*>(states.data), ranks, when, chain});
    }

private:
    static const int32_t* labels_of(Array labels) { return labels.count > 0 ? labels.as<int32_t>() : nullptr; }
    static double divisor_of(const Layout& l, PoolOver over) { return over == PoolOver::mean ? static_cast<double>(l.rows) : 1; }
    static double values_of(const Layout& l) { return static_cast<double>(l.images() * l.rows); }  // a channel's
    static NormOfBatch<R> norm_of_batch(const NormCoefficients& out, const BatchNormParameters& p, RunningStatistics running,
                                        const IterationState* state) {
        const bool update = running == RunningStatistics::update;
        return {.mean = out.mean.as<R>(),
                .inv_std = out.inv_std.as<R>(),
                .scale = out.scale.as<R>(),
                .gamma = p.gamma.as<R>(),
                .running_mean = update ? p.running_mean.as<R>() : nullptr,
                .running_var = update ? p.running_var.as<R>() : nullptr,
                .left_out = p.left_out.count > 0 ? p.left_out.as<R>() : nullptr,
                .state = state,
                .epsilon = p.epsilon,
                .momentum = p.momentum};
    }
    static NormBackwardCoefficients<R> backward_coefficients(const NormCoefficients& norm, double count) {
        return {.a = norm.a.as<R>(), .b = norm.b.as<R>(), .inv_std = norm.inv_std.as<R>(), .scale = norm.scale.as<R>(), .count = count};
    }
    // own_sums empty: the coefficients of this batch alone.
    static NormBackwardSums<R> backward_sums_of(Array own_sums, const NormCoefficients& norm, Array d_gamma, Array d_beta,
                                                const Layout& l) {
        const bool weights = d_gamma.count > 0;
        return {.out = backward_coefficients(norm, values_of(l)),
                .own_sums = own_sums.count > 0 ? own_sums.as<double>() : nullptr,
                .d_gamma = weights ? d_gamma.as<R>() : nullptr,
                .d_beta = weights ? d_beta.as<R>() : nullptr,
                .channels = l.channels(),
                .slope = static_cast<R>(norm.slope)};
    }
    void backward_sums(const char* label, Array own_sums, const NormCoefficients& norm, Array d_gamma, Array d_beta, const Tensor& d_y,
                       const Tensor& x) {
        const Layout l = x.layout();
        exec_.column_reduce(label, l, backward_sums_of(own_sums, norm, d_gamma, d_beta, l), In<A>{d_y.as<A>()}, In<A>{x.as<A>()},
                            PerChannel<R>{norm.mean.as<R>()}, PerChannel<R>{norm.scale.as<R>()}, PerChannel<R>{norm.beta.as<R>()});
    }
    static winograd::Tiles tiles_of(const Tensor& x, Array points) {
        const winograd::Tiles tiles{x.n, x.h, x.w, x.c};
        if (x.block != x.c || points.count != winograd::kPoints * tiles.count() * x.c)
            throw std::invalid_argument("Tiles were given images of another layout, or too many or too few points.");
        return tiles;
    }
    static Places places_of(const Tensor& t) { return {t.c, t.h, t.w, t.block}; }
    static PoolWindows<R, A> windows_of(const Tensor& x, const Tensor& y, const Pooling& how) {
        const auto fits = [](const PoolWindow& window, int64_t in, int64_t out) {
            return 2 * window.padding <= window.kernel && window.stride > 0 && out > 0 && window.outputs(in) == out;
        };
        if (!fits(how.rows, x.h, y.h) || !fits(how.columns, x.w, y.w) || x.n != y.n || x.c != y.c)
            throw std::invalid_argument("A pooling was given a window or an output that does not fit its input.");
        return {x.as<A>(), places_of(x), places_of(y), how};
    }
    // run(layout, first channel, first element) for some of x's images at a time, each seen as channels of its own: a reduction has room
    // for the partial sums of so many.
    template <class Run>
    static void by_images(const Tensor& x, Run run) {
        constexpr int64_t kMostChannels = 1 << 17;
        const int64_t most = std::max<int64_t>(1, kMostChannels / x.c);
        for (int64_t first = 0; first < x.n; first += most) {
            Tensor some = x;
            some.n = std::min(most, x.n - first);
            run(of_images(some).layout(), first * x.c, first * x.c * x.h * x.w);
        }
    }
    static const R* scales_of(Array scales) { return scales.count > 0 ? scales.as<R>() : nullptr; }
    // Values of x for each of `images`; all of them where there are none.
    static int64_t row_of(Array x, Array images) { return images.count > 0 ? x.count / images.count : x.count; }
    // run(how many channels an item takes), a constant that divides all of `multiples`.
    template <class Run>
    static void side_by_side(std::initializer_list<int64_t> multiples, Run run) {
        const auto fits = [&](int64_t width) {
            return std::all_of(multiples.begin(), multiples.end(), [=](int64_t m) { return m % width == 0; });
        };
        if (Exec::kMostChannelsPerItem >= 16 && fits(16))
            return run(std::integral_constant<int, std::min(16, Exec::kMostChannelsPerItem)>());
        if (Exec::kMostChannelsPerItem >= 8 && fits(8)) return run(std::integral_constant<int, std::min(8, Exec::kMostChannelsPerItem)>());
        run(std::integral_constant<int, 1>());
    }
    void copy_channels(const char* label, const Tensor& whole, std::span<const Tensor> parts, bool to_whole) {
        int64_t first = 0;
        for (const Tensor& part : parts) {
            if (part.n != whole.n || part.h != whole.h || part.w != whole.w || first + part.c > whole.c)
                throw std::invalid_argument("A concatenation was given parts that do not fit the whole.");
            side_by_side({part.block, whole.block, first}, [&](auto width) {
                exec_.for_each(label, part.count() / width(),
                               CopyChannels<A, width()>{part.as<A>(), whole.as<A>(), places_of(part), places_of(whole), first, to_whole});
            });
            first += part.c;
        }
        if (first != whole.c) throw std::invalid_argument("A concatenation was given parts that do not fill the whole.");
    }
    static Layout flat(int64_t count) { return {.planes = 1, .rows = count, .block = 1, .blocks = 1}; }

    Exec exec_;
};

}  // namespace jem
