// Minimal filtering's transforms, together with products by loops, against the convolution that they stand for.
#include <doctest/doctest.h>

#include <cmath>

#include "kernels/winograd.h"
#include "tests/check.h"
#include "tests/on_device.h"

namespace jem {
namespace {

struct Case {
    int64_t images, height, width, in, out;
};
// Whole tiles, and tiles that reach beyond the image by one, two and three; one channel, and more than a block of threads has.
constexpr Case kCases[] = {{1, 4, 4, 1, 1}, {2, 8, 8, 3, 5}, {1, 5, 7, 2, 3}, {3, 6, 3, 4, 2}, {1, 2, 9, 300, 1}};
constexpr int64_t kTaps = 9;

// y [N, H, W, out] of x [N, H, W, in] and w [out, 9, in]
Values convolution(const Case& c, const Values& x, const Values& w) {
    Values y(static_cast<size_t>(c.images * c.height * c.width * c.out));
    for (int64_t p = 0; p < c.images * c.height * c.width; ++p)
        for (int64_t t = 0; t < kTaps; ++t) {
            const int64_t row = p / c.width % c.height + t / 3 - 1, column = p % c.width + t % 3 - 1;
            if (row < 0 || row >= c.height || column < 0 || column >= c.width) continue;
            const int64_t from = (p / (c.height * c.width) * c.height + row) * c.width + column;
            for (int64_t k = 0; k < c.out; ++k)
                for (int64_t i = 0; i < c.in; ++i)
                    y[static_cast<size_t>(p * c.out + k)] +=
                        x[static_cast<size_t>(from * c.in + i)] * w[static_cast<size_t>((k * kTaps + t) * c.in + i)];
        }
    return y;
}

// The 36 products [tiles, in] x [in, out], or of the transpose of [out, in].
Values products(const Values& a, const Values& b, int64_t tiles, int64_t in, int64_t out, bool transposed) {
    Values c(static_cast<size_t>(winograd::kPoints * tiles * out));
    for (int64_t p = 0; p < winograd::kPoints; ++p)
        for (int64_t t = 0; t < tiles; ++t)
            for (int64_t i = 0; i < in; ++i)
                for (int64_t k = 0; k < out; ++k)
                    c[static_cast<size_t>((p * tiles + t) * out + k)] +=
                        a[static_cast<size_t>((p * tiles + t) * in + i)] *
                        b[static_cast<size_t>(transposed ? (p * out + k) * in + i : (p * in + i) * out + k)];
    return c;
}

Tensor images(OnDevice& m, const Case& c, int64_t channels, const Values& values) {
    const Array a = m.real(values);
    return {a.data, a.type, c.images, channels, c.height, c.width, channels};
}

// Roundings of the transforms, which multiply a value by up to some tens on its way there and back, in units of the result's size.
constexpr double kRoundings = 200;

}  // namespace

TEST_CASE("minimal_filtering_is_the_convolution_with_norm_in_front_and_bias_and_residual_behind_and_turned_the_way_back") {
    on_every_device([](OnDevice& m) {
        for (const Case& c : kCases)
            for (const bool around : {false, true})
                for (const bool turned : {false, true}) {
                    CAPTURE(c.height);
                    CAPTURE(c.width);
                    CAPTURE(around);
                    CAPTURE(turned);
                    TestData data(11);
                    const Values x = data.normals(c.images * c.height * c.width * c.in), w = data.normals(c.out * kTaps * c.in),
                                 scale = data.uniforms(c.in, 0.5, 2), shift = data.normals(c.in), bias = data.normals(c.out),
                                 residual = data.normals(c.images * c.height * c.width * c.out);
                    // As the way back has them: [in, 9, out], the taps the other way round.
                    Values given(w.size());
                    for (int64_t k = 0; k < c.out; ++k)
                        for (int64_t t = 0; t < kTaps; ++t)
                            for (int64_t i = 0; i < c.in; ++i)
                                given[static_cast<size_t>(turned ? (i * kTaps + kTaps - 1 - t) * c.out + k : (k * kTaps + t) * c.in + i)] =
                                    w[static_cast<size_t>((k * kTaps + t) * c.in + i)];
                    Values a = x;
                    if (around)
                        for (size_t i = 0; i < a.size(); ++i) {
                            const size_t channel = i % static_cast<size_t>(c.in);
                            a[i] = scale[channel] * x[i] + shift[channel];
                            a[i] = a[i] > 0 ? a[i] : 0.1 * a[i];
                        }
                    Values want = convolution(c, a, w);
                    if (around)
                        for (size_t i = 0; i < want.size(); ++i) want[i] += bias[i % static_cast<size_t>(c.out)] + residual[i];

                    const int64_t tiles = winograd::Tiles{c.images, c.height, c.width, 1}.count();
                    const Array in = m.unwritten(winograd::kPoints * tiles * c.in), filter = m.unwritten(winograd::kPoints * c.in * c.out);
                    m.ops().winograd_input(in, images(m, c, c.in, x), around ? m.real(scale) : Array{}, around ? m.real(shift) : Array{},
                                           0.1);
                    m.ops().winograd_weights(filter, m.real(given), turned ? c.out : c.in, turned);
                    const Array out = m.real(products(m.read(in), m.read(filter), tiles, c.in, c.out, !turned));
                    const Tensor y = images(m, c, c.out, residual);
                    m.ops().winograd_output(y, out, around ? m.real(bias) : Array{}, around ? &y : nullptr);
                    const double size = std::sqrt(static_cast<double>(c.in * kTaps)) * 3;
                    check_close("y", m.read(Array{y.data, y.type, y.count()}), want, m.roundings(kRoundings, size));
                }
    });
}

TEST_CASE("tiles_refuse_images_of_another_layout_and_points_of_another_number") {
    on_every_device([](OnDevice& m) {
        const Array x = m.real(Values(2 * 4 * 4 * 2)), points = m.unwritten(winograd::kPoints * 2 * 2);
        const Tensor nhwc{x.data, x.type, 2, 2, 4, 4, 2};
        Tensor nchw = nhwc;
        nchw.block = 1;
        m.ops().winograd_input(points, nhwc, {}, {}, 0);
        CHECK_THROWS_AS(m.ops().winograd_input(points, nchw, {}, {}, 0), std::invalid_argument);
        CHECK_THROWS_AS(m.ops().winograd_input(points.slice(0, points.count - 1), nhwc, {}, {}, 0), std::invalid_argument);
        CHECK_THROWS_AS(m.ops().winograd_input(points, nhwc, m.real(Values(1)), m.real(Values(1)), 0), std::invalid_argument);
        CHECK_THROWS_AS(m.ops().winograd_output(nhwc, points, m.real(Values(3)), nullptr), std::invalid_argument);
        CHECK_THROWS_AS(m.ops().winograd_weights(points, m.real(Values(10)), 1, false), std::invalid_argument);
    });
}

}  // namespace jem
