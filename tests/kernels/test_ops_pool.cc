// Pooling over windows, concatenation and dropout against loops in double; their backward passes as adjoints and by differences.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "kernels/pool.h"
#include "tests/check.h"
#include "tests/on_device.h"

namespace jem {
namespace {

const Extent kExtents[] = {
    {.n = 1, .c = 1, .h = 4, .w = 4, .block = 1},   {.n = 2, .c = 3, .h = 5, .w = 7, .block = 3},
    {.n = 2, .c = 5, .h = 6, .w = 5, .block = 1},   {.n = 2, .c = 32, .h = 7, .w = 4, .block = 16},
    {.n = 3, .c = 24, .h = 8, .w = 9, .block = 24},
};

const Pooling kPoolings[] = {
    {.rows = {.kernel = 2, .stride = 2}, .columns = {.kernel = 2, .stride = 2}},
    {.rows = {.kernel = 3, .stride = 2, .padding = 1}, .columns = {.kernel = 3, .stride = 2, .padding = 1}},
    {.rows = {.kernel = 3, .stride = 1, .padding = 1}, .columns = {.kernel = 3, .stride = 1, .padding = 1}},
    {.rows = {.kernel = 1, .stride = 2}, .columns = {.kernel = 4, .stride = 1, .padding = 2}},
    {.rows = {.kernel = 2, .stride = 3, .padding = 1}, .columns = {.kernel = 2, .stride = 1}},
};

Extent pooled(const Extent& e, const Pooling& p, int64_t block) {
    return {.n = e.n,
            .c = e.c,
            .h = (e.h + 2 * p.rows.padding - p.rows.kernel) / p.rows.stride + 1,
            .w = (e.w + 2 * p.columns.padding - p.columns.kernel) / p.columns.stride + 1,
            .block = block};
}

// calls visit(position of y, position of x) for all values of each window, in NCHW, row by row
template <class Visit>
void for_each_pair(const Extent& in, const Extent& out, const Pooling& p, Visit visit) {
    for (int64_t plane = 0; plane < in.n * in.c; ++plane)
        for (int64_t row = 0; row < out.h; ++row)
            for (int64_t column = 0; column < out.w; ++column)
                for (int64_t i = 0; i < p.rows.kernel; ++i)
                    for (int64_t j = 0; j < p.columns.kernel; ++j) {
                        const int64_t h = row * p.rows.stride - p.rows.padding + i, w = column * p.columns.stride - p.columns.padding + j;
                        if (h < 0 || h >= in.h || w < 0 || w >= in.w) continue;
                        visit(static_cast<size_t>((plane * out.h + row) * out.w + column),
                              static_cast<size_t>((plane * in.h + h) * in.w + w));
                    }
}

struct Pooled {
    Values y, d_x;
};
Pooled by_definition(const Extent& in, const Extent& out, const Pooling& p, const Values& x, const Values& d_y) {
    Pooled r{Values(d_y.size()), Values(x.size())};
    if (p.kind == PoolKind::max) {
        std::vector<size_t> from(d_y.size());
        r.y.assign(d_y.size(), -std::numeric_limits<double>::infinity());
        for_each_pair(in, out, p, [&](size_t to, size_t at) {
            if (!(x[at] > r.y[to])) return;
            r.y[to] = x[at];
            from[to] = at;
        });
        for (size_t i = 0; i < d_y.size(); ++i) r.d_x[from[i]] += d_y[i];
        return r;
    }
    Values count(d_y.size());
    for_each_pair(in, out, p, [&](size_t to, size_t) { count[to] += 1; });
    if (p.count_padding) std::fill(count.begin(), count.end(), static_cast<double>(p.rows.kernel * p.columns.kernel));
    for_each_pair(in, out, p, [&](size_t to, size_t at) {
        r.y[to] += x[at] / count[to];
        r.d_x[at] += d_y[to] / count[to];
    });
    return r;
}

std::vector<Pooling> every_kind() {
    std::vector<Pooling> out;
    for (Pooling p : kPoolings) {
        p.kind = PoolKind::max;
        out.push_back(p);
        p.kind = PoolKind::average;
        out.push_back(p);
        p.count_padding = false;
        out.push_back(p);
    }
    return out;
}

TEST_CASE("pooling_is_the_maximum_or_average_of_each_window_and_its_backward_the_adjoint") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents)
            for (const Pooling& p : every_kind()) {
                INFO(e.text() << ", kernel " << p.rows.kernel << "x" << p.columns.kernel << ", average " << (p.kind == PoolKind::average)
                              << ", padding counts " << p.count_padding);
                for (const int64_t block : {e.block, e.c}) {
                    const Extent out = pooled(e, p, block);
                    TestData data(1);
                    const Values x = data.normals(e.count()), d_y = data.normals(out.count());
                    const Pooled want = by_definition(e, out, p, x, d_y);
                    const Tensor in = m.tensor(e, x), y = m.unwritten(out), d_x = m.unwritten(e);
                    m.ops().pool(y, in, p);
                    check_close("y", m.read(y), want.y, m.roundings(12, 4));  // at most 9 values, of magnitude 4
                    m.ops().pool_backward(d_x, m.tensor(out, d_y), in, p);
                    check_close("d_x", m.read(d_x), want.d_x, m.roundings(20, 4));
                }
            }
    });
}

TEST_CASE("a_maximum_that_several_share_belongs_to_the_first_and_a_nan_wins") {
    on_every_device([](OnDevice& m) {
        const Extent e{.n = 1, .c = 1, .h = 2, .w = 4, .block = 1}, out{.n = 1, .c = 1, .h = 1, .w = 2, .block = 1};
        const Pooling p;
        const Tensor in = m.tensor(e, {1, 3, 2, std::nan(""), 3, 3, 7, 2}), y = m.unwritten(out), d_x = m.unwritten(e);
        m.ops().pool(y, in, p);
        check_equal("y", m.read(y), {3, std::nan("")});
        m.ops().pool_backward(d_x, m.tensor(out, {5, 6}), in, p);
        check_equal("d_x", m.read(d_x), {0, 5, 0, 6, 0, 0, 0, 0});
    });
}

TEST_CASE("gradient_of_pooling_is_that_of_differences") {
    const auto device = make_reference_device(DType::f64);
    const Extent e{.n = 2, .c = 3, .h = 5, .w = 6, .block = 3};
    constexpr double kStep = 1e-6, kError = 1e-8;  // linear but for kinks: values closer than two steps do not occur in these data
    for (const Pooling& p : every_kind()) {
        OnDevice m(*device);
        const Extent out = pooled(e, p, 1);
        TestData data(2);
        const Values x = data.normals(e.count()), d_y = data.normals(out.count()), direction = data.normals(e.count());
        const Tensor in = m.tensor(e, x), y = m.unwritten(out), d_x = m.unwritten(e);
        m.ops().pool_backward(d_x, m.tensor(out, d_y), in, p);
        const auto loss = [&](double step) {
            Values at = x;
            for (size_t i = 0; i < at.size(); ++i) at[i] += step * direction[i];
            m.write(in, at);
            m.ops().pool(y, in, p);
            const Values values = m.read(y);
            double sum = 0;
            for (size_t i = 0; i < values.size(); ++i) sum += d_y[i] * values[i];
            return sum;
        };
        const Values gradient = m.read(d_x);
        double along = 0;
        for (size_t i = 0; i < gradient.size(); ++i) along += gradient[i] * direction[i];
        check_close("along a direction", {along}, {(loss(kStep) - loss(-kStep)) / (2 * kStep)}, {kError, kError});
    }
}

TEST_CASE("a_pooling_refuses_what_does_not_fit") {
    const auto device = make_reference_device(DType::f32);
    OnDevice m(*device);
    const Tensor x = m.unwritten({.n = 1, .c = 2, .h = 4, .w = 4, .block = 2}),
                 y = m.unwritten({.n = 1, .c = 2, .h = 2, .w = 2, .block = 2});
    CHECK_NOTHROW(m.ops().pool(y, x, {}));
    CHECK_THROWS_AS(m.ops().pool(x, y, {}), std::invalid_argument);
    // A window that lies in the padding alone has no maximum.
    CHECK_THROWS_AS(m.ops().pool(y, x, {.rows = {.kernel = 2, .stride = 4, .padding = 2}}), std::invalid_argument);
}

TEST_CASE("concatenation_puts_the_channels_of_one_part_behind_the_others_and_back") {
    on_every_device([](OnDevice& m) {
        for (const auto& [widths, block] :
             {std::pair<std::vector<int64_t>, int64_t>{{16, 32, 16}, 16}, {{3, 5, 1, 7}, 0}, {{16, 4}, 0}, {{6}, 0}}) {
            const int64_t channels = std::accumulate(widths.begin(), widths.end(), int64_t{0});
            const Extent whole{.n = 2, .c = channels, .h = 3, .w = 5, .block = block > 0 ? block : channels};
            INFO(whole.text());
            TestData data(3);
            Values y(static_cast<size_t>(whole.count()));
            std::vector<Tensor> parts, back;
            std::vector<Values> values;
            int64_t first = 0;
            for (const int64_t c : widths) {
                const Extent e{.n = 2, .c = c, .h = 3, .w = 5, .block = c % 16 == 0 ? 16 : c};
                values.push_back(data.normals(e.count()));
                for (int64_t i = 0; i < e.count(); ++i)
                    y[static_cast<size_t>((i / (c * 15) * channels + first) * 15 + i % (c * 15))] = values.back()[static_cast<size_t>(i)];
                parts.push_back(m.tensor(e, values.back()));
                back.push_back(m.unwritten(e));
                first += c;
            }
            const Tensor out = m.unwritten(whole);
            m.ops().concatenate(out, parts);
            check_equal("y", m.read(out), y);
            m.ops().concatenate_backward(back, out);
            for (size_t i = 0; i < parts.size(); ++i) check_equal("part", m.read(back[i]), values[i]);
        }
    });
}

TEST_CASE("a_concatenation_refuses_parts_that_do_not_fill_the_whole") {
    const auto device = make_reference_device(DType::f32);
    OnDevice m(*device);
    const auto tensor = [&](int64_t c, int64_t side) { return m.unwritten({.n = 1, .c = c, .h = side, .w = 2, .block = c}); };
    const Tensor whole = tensor(5, 2);
    const auto of = [&](std::vector<Tensor> parts) { m.ops().concatenate(whole, parts); };
    CHECK_NOTHROW(of({tensor(2, 2), tensor(3, 2)}));
    CHECK_THROWS_AS(of({tensor(2, 2), tensor(2, 2)}), std::invalid_argument);
    CHECK_THROWS_AS(of({tensor(2, 2), tensor(4, 2)}), std::invalid_argument);
    CHECK_THROWS_AS(of({tensor(2, 2), tensor(3, 1)}), std::invalid_argument);
}

constexpr DropoutSettings kDrop{.rate = 0.3, .seed = 9, .layer = 2, .pass = 1};
const Extent kDropped{.n = 4, .c = 32, .h = 5, .w = 6, .block = 16};

// Which values are kept, in NCHW order.
Values mask(OnDevice& m, const Extent& e, const DropoutSettings& how, const IterationState& state = {}) {
    const Tensor y = m.unwritten(e);
    m.ops().dropout(y, m.tensor(e, Values(static_cast<size_t>(e.count()), 1)), m.state(state), how);
    Values kept = m.read(y);
    for (double& v : kept) v = v != 0 ? 1 : 0;
    return kept;
}

TEST_CASE("dropout_drops_its_share_and_scales_the_others_by_what_is_kept") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            const Values x = TestData(4).normals(e.count());
            const Tensor in = m.tensor(e, x), y = m.unwritten(e);
            IterationState* state = m.state();
            m.ops().dropout(y, in, state, kDrop);
            const Values kept = mask(m, e, kDrop);
            Values want;
            for (size_t i = 0; i < x.size(); ++i) want.push_back(kept[i] * x[i] / 0.7);
            check_close("y", m.read(y), want, m.roundings(3));
            // The same mask again, in place: of gradients, that is its backward pass.
            m.ops().dropout(in, in, state, kDrop);
            check_equal("y == x", m.read(in), m.read(y));
        }
        double kept = 0;
        for (const double v : mask(m, kDropped, kDrop)) kept += v;
        const double count = static_cast<double>(kDropped.count());
        CHECK(std::abs(kept / count - 0.7) < 5 * std::sqrt(0.3 * 0.7 / count));  // five standard errors
        const Values x = TestData(5).normals(kDropped.count());
        const Tensor in = m.tensor(kDropped, x);
        m.ops().dropout(in, in, m.state(), {.rate = 0});
        check_equal("nothing is dropped", m.read(in), x);
    });
}

TEST_CASE("dropout_draws_a_mask_for_every_iteration_step_layer_and_pass_whatever_the_layout_and_the_ranks") {
    Values everywhere;
    on_every_device([&](OnDevice& m) {
        const Values first = mask(m, kDropped, kDrop);
        if (everywhere.empty()) everywhere = first;
        check_equal("on every device", first, everywhere);
        check_equal("again", mask(m, kDropped, kDrop), first);
        Extent other = kDropped;
        other.block = other.c;
        check_equal("in another layout", mask(m, other, kDrop), first);
        // The second half of the batch, as a rank of its own has it.
        Extent half = kDropped;
        half.n = 2;
        DropoutSettings second = kDrop;
        second.first_image = 2;
        check_equal("of a rank", mask(m, half, second), Values(first.begin() + half.count(), first.end()));

        const auto differs = [&](const char* what, const DropoutSettings& how, const IterationState& state) {
            const Values drawn = mask(m, kDropped, how, state);
            double same = 0;
            for (size_t i = 0; i < first.size(); ++i) same += drawn[i] == first[i] ? 1 : 0;
            const double count = static_cast<double>(first.size());
            // Independent masks agree where both keep (.49) or both drop (.09).
            CHECK_MESSAGE(std::abs(same / count - 0.58) < 5 * std::sqrt(0.58 * 0.42 / count), what, ": ", same, " of ", count, " agree");
        };
        IterationState iteration, step;
        iteration.iteration = 1;
        step.step = 1;
        DropoutSettings layer = kDrop, pass = kDrop, seed = kDrop;
        layer.layer = 3;
        pass.pass = 2;
        seed.seed = 10;
        differs("iteration", kDrop, iteration);
        differs("step", kDrop, step);
        differs("layer", layer, {});
        differs("pass", pass, {});
        differs("seed", seed, {});
    });
}

}  // namespace
}  // namespace jem
