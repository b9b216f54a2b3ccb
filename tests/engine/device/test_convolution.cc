// Convolutions and the linear head: the CPU's plans against the definition in double, the reference's loops the same way.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <vector>

#include "engine/device/cpu/conv_plan.h"
#include "engine/device/cpu/onednn.h"
#include "tests/check.h"
#include "tests/check_sums.h"
#include "tests/on_device.h"

namespace jem {
namespace {

// The roundings of a sum of K random terms walk: their error is about sqrt(K) roundings of the result's rms, times 4 for the largest of
// many results, and as many of the result itself.
constexpr double kDirect = 4;
// Winograd's F(4x4, 3x3) multiplies by constants up to 8 and takes differences: measured below 1e-5 of the tensor's rms.
constexpr double kWinograd = 2e-5;

double root_mean_square(const Values& values) {
    double sum = 0;
    for (const double v : values) sum += v * v;
    return std::sqrt(sum / static_cast<double>(values.size()));
}

// One convolution in double on values in NCHW, outputs one by one from the definition. Weights are [O, H, W, I].
struct Definition {
    ConvShape s;
    int64_t n;
    const Values &x, &w, &b, &d_y;

    double input(int64_t image, int64_t c, int64_t row, int64_t column) const {
        if (row < 0 || row >= s.height || column < 0 || column >= s.width) return 0;
        return x[static_cast<size_t>(((image * s.in_channels + c) * s.height + row) * s.width + column)];
    }
    double gradient(int64_t image, int64_t o, int64_t row, int64_t column) const {
        return d_y[static_cast<size_t>(((image * s.out_channels + o) * s.out_height() + row) * s.out_width() + column)];
    }
    double weight(int64_t o, int64_t ky, int64_t kx, int64_t i) const {
        return w[static_cast<size_t>(((o * s.kernel.height + ky) * s.kernel.width + kx) * s.in_channels + i)];
    }
    // y at position `at` of NCHW
    double forward(int64_t at) const {
        const int64_t column = at % s.out_width(), row = at / s.out_width() % s.out_height();
        const int64_t o = at / (s.out_width() * s.out_height()) % s.out_channels,
                      image = at / (s.out_width() * s.out_height() * s.out_channels);
        double sum = b[static_cast<size_t>(o)];
        for (int64_t ky = 0; ky < s.kernel.height; ++ky)
            for (int64_t kx = 0; kx < s.kernel.width; ++kx)
                for (int64_t i = 0; i < s.in_channels; ++i)
                    sum += weight(o, ky, kx, i) *
                           input(image, i, row * s.stride.height + ky - s.padding.height, column * s.stride.width + kx - s.padding.width);
        return sum;
    }
    double backward_data(int64_t at) const {
        const int64_t column = at % s.width, row = at / s.width % s.height;
        const int64_t i = at / (s.width * s.height) % s.in_channels, image = at / (s.width * s.height * s.in_channels);
        double sum = 0;
        for (int64_t ky = 0; ky < s.kernel.height; ++ky)
            for (int64_t kx = 0; kx < s.kernel.width; ++kx) {
                const int64_t down = row + s.padding.height - ky, right = column + s.padding.width - kx;
                if (down % s.stride.height != 0 || right % s.stride.width != 0) continue;
                const int64_t out_row = down / s.stride.height, out_column = right / s.stride.width;
                if (down < 0 || right < 0 || out_row >= s.out_height() || out_column >= s.out_width()) continue;
                for (int64_t o = 0; o < s.out_channels; ++o) sum += gradient(image, o, out_row, out_column) * weight(o, ky, kx, i);
            }
        return sum;
    }
    // d_w at position `at` of [O, H, W, I], without what it is added to
    double backward_weights(int64_t at) const {
        const int64_t i = at % s.in_channels, kx = at / s.in_channels % s.kernel.width;
        const int64_t ky = at / (s.in_channels * s.kernel.width) % s.kernel.height, o = at / (s.in_channels * s.kernel.area());
        double sum = 0;
        for (int64_t image = 0; image < n; ++image)
            for (int64_t row = 0; row < s.out_height(); ++row)
                for (int64_t column = 0; column < s.out_width(); ++column)
                    sum += gradient(image, o, row, column) *
                           input(image, i, row * s.stride.height + ky - s.padding.height, column * s.stride.width + kx - s.padding.width);
        return sum;
    }
};

// All positions of a small tensor, some hundred of a large one: random, and both ends.
std::vector<int64_t> positions(TestData& data, int64_t count) {
    constexpr int64_t kLooked = 300;
    std::vector<int64_t> out;
    if (count <= kLooked) {
        for (int64_t i = 0; i < count; ++i) out.push_back(i);
        return out;
    }
    for (int64_t i = 0; i < kLooked; ++i) out.push_back(data.index(count));
    out.push_back(0);
    out.push_back(count - 1);
    return out;
}

class ConvCase {
public:
    ConvCase(OnDevice& m, const ConvShape& shape, ConvAlgorithm algorithm, const std::vector<int64_t>& batches)
        : ConvCase(m, shape, m.device().plan_convolution(shape, {.batches = batches, .algorithm = algorithm}),
                   [&m](int64_t channels) { return m.device().channel_block(channels); }) {}
    // block_of: the channel block of an activation with so many channels.
    ConvCase(OnDevice& m, const ConvShape& shape, std::unique_ptr<ConvPlan> plan, std::function<int64_t(int64_t)> block_of)
        : m_(m), shape_(shape), plan_(std::move(plan)), block_of_(std::move(block_of)) {
        TestData data(11);
        w_ = data.normals(shape.weight_count());
        b_ = data.normals(shape.out_channels);
        weights_ = m.real(w_);
        bias_ = m.real(b_);
        // Neither scratch nor prepared weights may be expected to be zero.
        prepared_ = garbage(plan_->prepared_bytes());
        workspace_ = garbage(plan_->workspace_bytes());
        plan_->prepare(prepared_, weights_, workspace_);
    }

    // All passes at one batch size.
    void check(int64_t n) {
        const auto extent = [&](int64_t c, int64_t h, int64_t w) { return Extent{.n = n, .c = c, .h = h, .w = w, .block = block_of_(c)}; };
        const Extent in = extent(shape_.in_channels, shape_.height, shape_.width);
        const Extent out = extent(shape_.out_channels, shape_.out_height(), shape_.out_width());
        TestData data(12);
        const Values x = data.normals(in.count()), d_y = data.normals(out.count());
        const Definition definition{shape_, n, x, w_, b_, d_y};
        const Tensor tx = m_.tensor(in, x), td_y = m_.tensor(out, d_y);
        check_forward(definition, out, tx);
        check_backward_data(definition, in, td_y);
        check_backward_weights(definition, tx, td_y);
        check_sums_behind(out, tx);
        for (const double slope : {0.2, 0.0}) {
            check_norm_in_front(in, out, tx, td_y, slope);
            check_leaky_backward(in, tx, td_y, static_cast<float>(slope));
        }
        check_equal("x stays", m_.read(tx), x);
        check_equal("d_y stays", m_.read(td_y), d_y);
    }

    const ConvPlan& plan() const { return *plan_; }

private:
    void check_forward(const Definition& definition, const Extent& out, const Tensor& x) {
        const double terms = static_cast<double>(shape_.kernel.area() * shape_.in_channels);
        TestData data(13);
        const Values added = data.normals(out.count());
        const std::vector<int64_t> looked = positions(data, out.count());
        Values plain, with;
        for (const int64_t at : looked) {
            plain.push_back(definition.forward(at));
            with.push_back(plain.back() + added[static_cast<size_t>(at)]);
        }
        const Tensor y = m_.unwritten(out), onto = m_.unwritten(out), residual = m_.tensor(out, added);
        plan_->forward(y, x, prepared_, bias_, nullptr, workspace_);
        compare({"forward", definition.n, terms + 1}, m_.read(y), looked, plain);
        plan_->forward(onto, x, prepared_, bias_, &residual, workspace_);
        compare({"forward", definition.n, terms + 2, " + residual"}, m_.read(onto), looked, with);
        check_equal("the residual stays", m_.read(residual), added);
        plan_->forward(residual, x, prepared_, bias_, &residual, workspace_);
        check_equal("y == residual", m_.read(residual), m_.read(onto));
    }
    void check_backward_data(const Definition& definition, const Extent& in, const Tensor& d_y) {
        TestData data(14);
        const std::vector<int64_t> looked = positions(data, in.count());
        Values want;
        for (const int64_t at : looked) want.push_back(definition.backward_data(at));
        const Tensor d_x = m_.unwritten(in);
        plan_->backward_data(d_x, d_y, prepared_, workspace_);
        const double terms = static_cast<double>(shape_.kernel.area() * shape_.out_channels);
        compare({"backward_data", definition.n, terms}, m_.read(d_x), looked, want);
    }
    void check_backward_weights(const Definition& definition, const Tensor& x, const Tensor& d_y) {
        TestData data(15);
        const Values held = data.normals(shape_.weight_count());
        const std::vector<int64_t> looked = positions(data, shape_.weight_count());
        Values want;
        for (const int64_t at : looked) want.push_back(held[static_cast<size_t>(at)] + definition.backward_weights(at));
        const Array d_w = m_.real(held);
        plan_->backward_weights(d_w, x, d_y, workspace_);
        const double terms = static_cast<double>(definition.n * shape_.out_height() * shape_.out_width());
        compare({"backward_weights", definition.n, terms + 1, ", onto what is there"}, m_.read(d_w), looked, want);
    }

    // A plan that takes norm and LeakyReLU in front of it does just what the op and the convolution do one after the other.
    void check_norm_in_front(const Extent& in, const Extent& out, const Tensor& x, const Tensor& d_y, double slope) {
        TestData data(16);
        const auto coefficient = [&](double low, double high) { return m_.real(data.uniforms(in.c, low, high)); };
        const NormCoefficients norm{.mean = coefficient(-1, 1),
                                    .inv_std = {},
                                    .scale = coefficient(0.5, 2),
                                    .beta = coefficient(-1, 1),
                                    .a = {},
                                    .b = {},
                                    .slope = slope};
        const Tensor activation = m_.unwritten(in), residual = m_.tensor(out, data.normals(out.count()));
        m_.ops().norm_leaky(activation, x, norm);
        for (const Tensor* added : {static_cast<const Tensor*>(nullptr), &residual}) {
            if (!plan_->fuses(x.n, {.activation = true}, added != nullptr).activation) continue;
            const Tensor apart = m_.unwritten(out), fused = m_.unwritten(out);
            plan_->forward(apart, activation, prepared_, bias_, added, workspace_);
            plan_->forward_fused(fused, x, {.norm = &norm}, prepared_, bias_, added, workspace_);
            check_equal(shape_.text() + ", forward with the norm in front", m_.read(fused), m_.read(apart));
        }
        if (!plan_->fuses_weights_activation(x.n)) return;
        const Values held = data.normals(shape_.weight_count());
        const Array apart = m_.real(held), fused = m_.real(held);
        plan_->backward_weights(apart, activation, d_y, workspace_);
        plan_->backward_weights_fused(fused, x, norm, d_y, workspace_);
        check_equal(shape_.text() + ", backward_weights with the norm in front", m_.read(fused), m_.read(apart));
    }

    // Sums for the norm behind are those of what was written, up to some roundings of f32.
    void check_sums_behind(const Extent& out, const Tensor& x) {
        TestData data(17);
        const Values centre = data.uniforms(out.c, -1, 1);
        const Tensor residual = m_.tensor(out, data.normals(out.count()));
        for (const Tensor* added : {static_cast<const Tensor*>(nullptr), &residual}) {
            if (!plan_->fuses(x.n, {.sums = true}, added != nullptr).sums) continue;
            const Tensor apart = m_.unwritten(out), fused = m_.unwritten(out);
            const Array sums = m_.real(Values(static_cast<size_t>(2 * out.c)));
            plan_->forward(apart, x, prepared_, bias_, added, workspace_);
            plan_->forward_fused(fused, x, {.centre = m_.real(centre), .sums = sums}, prepared_, bias_, added, workspace_);
            const Values y = m_.read(fused);
            check_equal(shape_.text() + ", forward with sums", y, m_.read(apart));
            const auto from_centre = [&](size_t i, size_t c) { return y[i] - centre[c]; };
            check_sums(shape_.text() + ", sums of forward", out, m_.read(sums), m_.rounding(), from_centre,
                       [&](size_t i, size_t c) { return from_centre(i, c) * from_centre(i, c); });
        }
    }
    // The LeakyReLU's way back, fused, is its op on the convolution's result.
    void check_leaky_backward(const Extent& in, const Tensor& x, const Tensor& d_y, float slope) {
        if (!plan_->fuses_leaky_backward(x.n)) return;
        TestData data(18);
        const Values mean = data.uniforms(in.c, -1, 1), scale = data.uniforms(in.c, 0.5, 2), beta = data.uniforms(in.c, -1, 1);
        const NormCoefficients norm{
            .mean = m_.real(mean), .inv_std = {}, .scale = m_.real(scale), .beta = m_.real(beta), .a = {}, .b = {}, .slope = slope};
        const Tensor apart = m_.unwritten(in), fused = m_.unwritten(in);
        const Array sums = m_.real(Values(static_cast<size_t>(2 * in.c)));
        plan_->backward_data(apart, d_y, prepared_, workspace_);
        plan_->backward_data_fused(fused, d_y, {.x = x, .norm = norm, .sums = sums}, prepared_, workspace_);
        const Values d_x = m_.read(apart), d_z = m_.read(fused), values = m_.read(x);
        Values want;
        for (size_t i = 0; i < d_x.size(); ++i) {
            const size_t c = channel(in, i);
            const auto centred = static_cast<float>(values[i]) - static_cast<float>(mean[c]);
            const float z = std::fma(centred, static_cast<float>(scale[c]), static_cast<float>(beta[c]));
            want.push_back(static_cast<double>(z > 0 ? static_cast<float>(d_x[i]) : slope * static_cast<float>(d_x[i])));
        }
        check_equal(shape_.text() + ", backward_data with LeakyReLU", d_z, want);
        check_sums(
            shape_.text() + ", sums of backward_data", in, m_.read(sums), m_.rounding(), [&](size_t i, size_t) { return d_z[i]; },
            [&](size_t i, size_t c) { return d_z[i] * (values[i] - mean[c]); });
    }
    static size_t channel(const Extent& e, size_t i) { return i / static_cast<size_t>(e.h * e.w) % static_cast<size_t>(e.c); }

    std::byte* garbage(size_t bytes) {
        const std::vector<std::byte> nan(bytes, std::byte{0xFF});
        return static_cast<std::byte*>(m_.raw(nan.data(), bytes));
    }
    std::string engine(const std::string& pass, int64_t n) const {
        for (const ConvPlan::Choice& c : plan_->choices())
            if (c.batch == n && c.pass == pass) return c.engine;
        return "loops";
    }
    struct What {
        std::string pass;
        int64_t batch;
        double terms;  // of one result's sum
        std::string detail = "";
    };
    void compare(const What& what, const Values& all, const std::vector<int64_t>& looked, const Values& want) {
        const std::string chosen = engine(what.pass, what.batch);
        Values got;
        for (const int64_t at : looked) got.push_back(all[static_cast<size_t>(at)]);
        const double tolerance = chosen.find("wino") != std::string::npos ? kWinograd : kDirect * std::sqrt(what.terms) * m_.rounding();
        const std::string text = shape_.text() + ", batch " + std::to_string(what.batch) + ", " + what.pass + what.detail + " by " + chosen;
        check_close(text, got, want, Tolerance{.absolute = tolerance * root_mean_square(want), .relative = kDirect * m_.rounding()});
        const auto missing = std::count_if(all.begin(), all.end(), [](double v) { return !std::isfinite(v); });
        CHECK_MESSAGE(missing == 0, text, ": ", missing, " values were not written");
    }

    OnDevice& m_;
    ConvShape shape_;
    std::unique_ptr<ConvPlan> plan_;
    std::function<int64_t(int64_t)> block_of_;
    Values w_, b_;
    Array weights_, bias_;
    std::byte *prepared_ = nullptr, *workspace_ = nullptr;
};

// The distinct convolutions of a JEM Wide-ResNet at 32x32.
std::set<ConvShape> shapes_of(int64_t depth, int64_t width) {
    std::set<ConvShape> out = {{.in_channels = 3, .out_channels = 16, .height = 32, .width = 32}};
    int64_t in = 16, size = 32;
    for (int64_t group = 0; group < 3; ++group)
        for (int64_t block = 0; block < (depth - 4) / 6; ++block) {
            const int64_t channels = (16 << group) * width, stride = group > 0 && block == 0 ? 2 : 1;
            out.insert({.in_channels = in, .out_channels = channels, .height = size, .width = size});
            out.insert({.in_channels = channels, .out_channels = channels, .height = size, .width = size, .kernel = 3, .stride = stride});
            if (stride == 2 || in != channels)
                out.insert({.in_channels = in, .out_channels = channels, .height = size, .width = size, .kernel = 1, .stride = stride});
            in = channels;
            size /= stride;
        }
    return out;
}

void check_network(int64_t depth, int64_t width, ConvAlgorithm algorithm) {
    const auto device = make_cpu_device({.threads = 2});
    for (const ConvShape& shape : shapes_of(depth, width)) {
        OnDevice m(*device);
        ConvCase(m, shape, algorithm, {2}).check(2);
    }
}

TEST_CASE("convolutions_of_wrn_10_1_match_the_definition") {
    check_network(10, 1, ConvAlgorithm::direct);
    check_network(10, 1, ConvAlgorithm::automatic);
}

TEST_CASE("convolutions_of_wrn_16_4_match_the_definition") {
    check_network(16, 4, ConvAlgorithm::direct);
    check_network(16, 4, ConvAlgorithm::automatic);
}

TEST_CASE("convolutions_of_wrn_28_10_match_the_definition_when_direct") { check_network(28, 10, ConvAlgorithm::direct); }

TEST_CASE("convolutions_of_wrn_28_10_match_the_definition_by_winograd") { check_network(28, 10, ConvAlgorithm::automatic); }

TEST_CASE("convolutions_that_take_a_batch_in_parts_match_the_definition") {
    const auto device = make_cpu_device({.threads = 2});
    OnDevice m(*device);
    // What it reads, 12 MiB, would leave a cache.
    ConvCase conv(m, {.in_channels = 64, .out_channels = 64, .height = 32, .width = 32, .kernel = 3, .stride = 2}, ConvAlgorithm::direct,
                  {48});
    int in_parts = 0;
    for (const ConvPlan::Choice& c : conv.plan().choices()) in_parts += c.pass != "backward_data" && c.engine.ends_with(" at a time");
    CHECK(in_parts == 2);
    conv.check(48);
}

const ConvShape kOddShapes[] = {
    {.in_channels = 1, .out_channels = 16, .height = 28, .width = 28},  // the stem of one channel
    {.in_channels = 3, .out_channels = 16, .height = 9, .width = 7},    //
    {.in_channels = 3, .out_channels = 32, .height = 9, .width = 11, .kernel = 5, .stride = 2, .padding = 2},
    {.in_channels = 4, .out_channels = 16, .height = 6, .width = 20, .kernel = {1, 4}, .stride = 1, .padding = {1, 0}},
    {.in_channels = 3, .out_channels = 16, .height = 8, .width = 5, .kernel = 1, .stride = {1, 3}},
    {.in_channels = 16, .out_channels = 16, .height = 7, .width = 7},                            //
    {.in_channels = 16, .out_channels = 32, .height = 9, .width = 9, .kernel = 3, .stride = 2},  // odd, halved
    {.in_channels = 16, .out_channels = 32, .height = 9, .width = 7, .kernel = 1, .stride = 2},  //
    {.in_channels = 32, .out_channels = 16, .height = 7, .width = 10, .kernel = 1, .stride = {2, 3}},
    {.in_channels = 32, .out_channels = 32, .height = 28, .width = 12},                           //
    {.in_channels = 32, .out_channels = 64, .height = 7, .width = 12, .kernel = 3, .stride = 2},  //
    {.in_channels = 64, .out_channels = 32, .height = 9, .width = 28, .kernel = 1, .stride = 1},  //
    {.in_channels = 32, .out_channels = 32, .height = 1, .width = 2},                             // smaller than the kernel
    // height and width each by itself, as Inception has them
    {.in_channels = 32, .out_channels = 48, .height = 9, .width = 12, .kernel = {1, 7}},
    {.in_channels = 48, .out_channels = 32, .height = 12, .width = 9, .kernel = {7, 1}},
    {.in_channels = 16, .out_channels = 32, .height = 9, .width = 8, .kernel = 3, .stride = 1, .padding = 0},
    {.in_channels = 16, .out_channels = 32, .height = 9, .width = 11, .kernel = 3, .stride = 2, .padding = 0},
    {.in_channels = 32, .out_channels = 64, .height = 10, .width = 8, .kernel = 5, .stride = 1, .padding = 2},
    {.in_channels = 16, .out_channels = 16, .height = 9, .width = 8, .kernel = {3, 1}, .stride = {2, 1}, .padding = {1, 0}},
};

TEST_CASE("convolutions_of_odd_sizes_match_the_definition_for_several_batches_of_one_plan") {
    const auto device = make_cpu_device({.threads = 2});
    for (const ConvAlgorithm algorithm : {ConvAlgorithm::direct, ConvAlgorithm::automatic})
        for (const ConvShape& shape : kOddShapes) {
            OnDevice m(*device);
            ConvCase conv(m, shape, algorithm, {3, 1, 5});
            for (const int64_t n : {5, 1, 3}) conv.check(n);
        }
}

std::unique_ptr<ConvPlan> winograd_plan(HostStream& stream, int threads, int64_t lanes, const ConvShape& shape,
                                        const std::vector<int64_t>& batches) {
    return make_winograd_plan(stream, threads, lanes, DType::f32, shape, {.batches = batches});
}

// Whatever this CPU would choose, for both widths of vectors.
TEST_CASE("minimal_filtering_matches_the_definition_for_odd_sizes_and_several_batches_of_one_plan") {
    const auto device = make_cpu_device({.threads = 2});
    for (const int64_t lanes : {8, 16})
        for (const ConvShape& shape :
             {ConvShape{.in_channels = 16, .out_channels = 16, .height = 7, .width = 7},
              ConvShape{.in_channels = 48, .out_channels = 32, .height = 28, .width = 12},
              ConvShape{.in_channels = 32, .out_channels = 32, .height = 1, .width = 2},
              ConvShape{.in_channels = 16, .out_channels = 64, .height = 32, .width = 32},
              ConvShape{.in_channels = 16, .out_channels = 32, .height = 9, .width = 9, .kernel = 3, .stride = 2},
              ConvShape{.in_channels = 32, .out_channels = 48, .height = 7, .width = 12, .kernel = 3, .stride = 2},
              ConvShape{.in_channels = 16, .out_channels = 16, .height = 1, .width = 1, .kernel = 3, .stride = 2},
              ConvShape{.in_channels = 32, .out_channels = 16, .height = 32, .width = 32, .kernel = 3, .stride = 2}}) {
            HostStream stream;
            OnDevice m(*device);
            ConvCase conv(m, shape, winograd_plan(stream, 2, lanes, shape, {3, 1, 10}), [&](int64_t) { return lanes; });
            for (const int64_t n : {10, 1, 3}) conv.check(n);
        }
    // 24 channels are three vectors of 8: a whole pair and a single one.
    HostStream stream;
    OnDevice m(*device);
    const ConvShape shape{.in_channels = 24, .out_channels = 8, .height = 8, .width = 8};
    ConvCase(m, shape, winograd_plan(stream, 2, 8, shape, {5}), [](int64_t) { return int64_t{8}; }).check(5);
}

// Beyond 12 MiB of transformed weights they are transformed call by call.
TEST_CASE("minimal_filtering_matches_the_definition_where_weights_are_too_many_to_be_kept_transformed") {
    const auto device = make_cpu_device({.threads = 2});
    const ConvShape shape{.in_channels = 384, .out_channels = 320, .height = 4, .width = 4};
    for (const int64_t lanes : {8, 16}) {
        HostStream stream;
        OnDevice m(*device);
        ConvCase conv(m, shape, winograd_plan(stream, 2, lanes, shape, {2}), [&](int64_t) { return lanes; });
        CHECK(conv.plan().prepared_bytes() == sizeof(const float*));  // where they lie
        conv.check(2);
    }
}

TEST_CASE("minimal_filtering_gives_the_same_bits_whatever_the_number_of_threads") {
    const auto device = make_cpu_device({.threads = 1});
    for (const int64_t stride : {1, 2}) {
        const ConvShape shape{.in_channels = 32, .out_channels = 48, .height = 18, .width = 18, .kernel = 3, .stride = stride};
        const auto all = [&](int threads) {
            HostStream stream;
            OnDevice m(*device);
            const auto plan = winograd_plan(stream, threads, 8, shape, {7});
            const auto extent = [](int64_t c, int64_t size) { return Extent{.n = 7, .c = c, .h = size, .w = size, .block = 8}; };
            const Extent in = extent(32, 18), out = extent(48, shape.out_height());
            TestData data(19);
            auto* prepared = static_cast<std::byte*>(m.raw(nullptr, plan->prepared_bytes()));
            auto* workspace = static_cast<std::byte*>(m.raw(nullptr, plan->workspace_bytes()));
            const Array w = m.real(data.normals(shape.weight_count())), d_w = m.real(Values(static_cast<size_t>(w.count)));
            const Array bias = m.real(data.normals(48)), centre = m.real(data.normals(48)), sums = m.real(Values(96)),
                        d_sums = m.real(Values(64));
            const NormCoefficients norm{.mean = m.real(data.normals(32)),
                                        .inv_std = {},
                                        .scale = m.real(data.normals(32)),
                                        .beta = m.real(data.normals(32)),
                                        .a = {},
                                        .b = {}};
            const Tensor x = m.tensor(in, data.normals(in.count())), y = m.unwritten(out), d_x = m.unwritten(in);
            plan->prepare(prepared, w, workspace);
            plan->forward_fused(y, x, {.norm = &norm, .centre = centre, .sums = sums}, prepared, bias, nullptr, workspace);
            plan->backward_data_fused(d_x, y, {.x = x, .norm = norm, .sums = d_sums}, prepared, workspace);
            plan->backward_weights_fused(d_w, x, norm, y, workspace);
            return std::vector<Values>{m.read(y), m.read(sums), m.read(d_x), m.read(d_sums), m.read(d_w)};
        };
        const auto one = all(1);
        for (const int threads : {2, 5}) CHECK(all(threads) == one);
    }
}

TEST_CASE("reference_convolutions_match_the_definition") {
    for (const DType type : {DType::f32, DType::f64}) {
        const auto device = make_reference_device(type);
        for (const ConvShape& shape : kOddShapes) {
            OnDevice m(*device);
            ConvCase(m, shape, ConvAlgorithm::direct, {}).check(2);
        }
    }
}

// Every value, not a sample of them, over a plan's whole life.
TEST_CASE("direct_convolutions_of_cpu_and_reference_agree_everywhere") {
    const auto cpu = make_cpu_device({.threads = 2}), reference = make_reference_device(DType::f64);
    for (const ConvShape& shape : {ConvShape{.in_channels = 3, .out_channels = 16, .height = 12, .width = 12},
                                   ConvShape{.in_channels = 16, .out_channels = 32, .height = 12, .width = 9, .kernel = 3, .stride = 2}}) {
        INFO(shape.text());
        const auto run = [&](Device& device) {
            OnDevice m(device);
            const auto extent = [&](int64_t c, int64_t h, int64_t w) {
                return Extent{.n = 3, .c = c, .h = h, .w = w, .block = device.channel_block(c)};
            };
            const Extent in = extent(shape.in_channels, shape.height, shape.width);
            const Extent out = extent(shape.out_channels, shape.out_height(), shape.out_width());
            const auto plan = device.plan_convolution(shape, {.batches = {3}, .algorithm = ConvAlgorithm::direct});
            auto* prepared = static_cast<std::byte*>(m.raw(nullptr, plan->prepared_bytes()));
            auto* workspace = static_cast<std::byte*>(m.raw(nullptr, plan->workspace_bytes()));
            TestData data(13);
            const Array w = m.real(Values(static_cast<size_t>(shape.weight_count()))), d_w = m.real(Values(static_cast<size_t>(w.count)));
            const Array b = m.real(data.normals(shape.out_channels));
            const Tensor x = m.tensor(in, data.normals(in.count())), y = m.unwritten(out), d_x = m.unwritten(in);
            plan->prepare(prepared, w, workspace);
            // The weights change, and are prepared again.
            m.write(w, data.normals(w.count));
            plan->prepare(prepared, w, workspace);
            plan->forward(y, x, prepared, b, nullptr, workspace);
            plan->backward_data(d_x, y, prepared, workspace);
            for (int twice = 0; twice < 2; ++twice) plan->backward_weights(d_w, x, y, workspace);
            return std::vector<Values>{m.read(y), m.read(d_x), m.read(d_w)};
        };
        const auto got = run(*cpu), want = run(*reference);
        // Terms a result: of y, of d_x (whose y carries y's error), of d_w.
        const double terms[] = {9.0 * 16, 9.0 * 32 + 9 * 16, 2 * 3.0 * 144 + 9 * 16};
        for (size_t i = 0; i < got.size(); ++i)
            check_close(i == 0   ? "y"
                        : i == 1 ? "d_x"
                                 : "d_w",
                        got[i], want[i], Tolerance{.absolute = 2 * kDirect * std::sqrt(terms[i]) * 0x1p-24 * root_mean_square(want[i])});
    }
}

// They are plain loops, and take longer than all the rest of a network.
TEST_CASE("no_convolution_of_a_network_falls_to_a_library_s_reference_loops") {
    const auto device = make_cpu_device({.threads = 2});
    std::set<ConvShape> shapes = shapes_of(10, 1);
    shapes.insert({.in_channels = 1, .out_channels = 16, .height = 28, .width = 28});
    for (const ConvShape& shape : shapes)
        for (const ConvAlgorithm algorithm : {ConvAlgorithm::automatic, ConvAlgorithm::direct})
            for (const ConvPlan::Choice& c : device->plan_convolution(shape, {.batches = {4}, .algorithm = algorithm})->choices()) {
                INFO(shape.text() << " " << c.pass << ": " << c.engine);
                CHECK(!c.engine.starts_with("ref"));
            }
}

TEST_CASE("the_first_provider_that_supports_a_convolution_has_it") {
    const auto provider = [](const ConvShape& shape, ConvAlgorithm algorithm) {
        return std::string(cpu_conv_provider(DType::f32, shape, {.batches = {4}, .algorithm = algorithm}).name);
    };
    const ConvShape square{.in_channels = 16, .out_channels = 32, .height = 8, .width = 8, .kernel = 3, .stride = 1};
    ConvShape strided = square, point = square, images = square;
    strided.stride = 2;
    point.kernel = 1;
    point.padding = 0;
    images.in_channels = 3;
    for (const ConvShape& shape : {square, strided}) CHECK(provider(shape, ConvAlgorithm::automatic) == "winograd");
    for (const ConvShape& shape : {point, images}) CHECK(provider(shape, ConvAlgorithm::automatic) == "onednn");
    for (const ConvShape& shape : {square, strided, point, images}) CHECK(provider(shape, ConvAlgorithm::direct) == "onednn");
}

TEST_CASE("direct_never_chooses_winograd") {
    const auto device = make_cpu_device({.threads = 2});
    for (const ConvShape& shape : shapes_of(16, 4)) {
        OnDevice m(*device);
        for (const ConvPlan::Choice& c : ConvCase(m, shape, ConvAlgorithm::direct, {2}).plan().choices()) {
            INFO(shape.text() << " " << c.pass << ": " << c.engine);
            CHECK(c.engine.find("wino") == std::string::npos);
            CHECK(c.batch == 2);
        }
    }
}

TEST_CASE("a_convolution_that_was_not_planned_or_cannot_be_laid_out_is_refused") {
    const auto device = make_cpu_device({.threads = 1});
    OnDevice m(*device);
    const ConvShape shape{.in_channels = 16, .out_channels = 16, .height = 8, .width = 8};
    const auto plan = device->plan_convolution(shape, {.batches = {2}});
    const Tensor x = m.unwritten(Extent{.n = 3, .c = 16, .h = 8, .w = 8, .block = device->channel_block(16)});
    CHECK_THROWS_AS(plan->forward(x, x, nullptr, {}, nullptr, nullptr), std::invalid_argument);
    CHECK_THROWS_AS(plan->backward_data(x, x, nullptr, nullptr), std::invalid_argument);
    CHECK_THROWS_AS(plan->backward_weights({}, x, x, nullptr), std::invalid_argument);
    // oneDNN would pad 24 or 20 channels to whole blocks; the tensors of such a width have none.
    CHECK_THROWS_AS(device->plan_convolution({.in_channels = 20, .out_channels = 16, .height = 8, .width = 8}, {.batches = {2}}),
                    std::invalid_argument);
    CHECK_THROWS_AS(device->plan_convolution({.in_channels = 16, .out_channels = 20, .height = 8, .width = 8}, {.batches = {2}}),
                    std::invalid_argument);
    const auto linear = device->plan_linear(16, 10, {2});
    const Tensor rows = m.unwritten(Extent{.n = 3, .c = 16, .block = 16});
    CHECK_THROWS_AS(linear->forward(rows, rows, {}, {}, nullptr), std::invalid_argument);
}

TEST_CASE("linear_head_matches_the_definition_and_accumulates") {
    on_every_device([](OnDevice& m) {
        struct Size {
            int64_t in, out;
        };
        for (const Size& s : {Size{64, 10}, Size{640, 100}, Size{33, 3}, Size{1, 1}}) {
            const auto plan = m.device().plan_linear(s.in, s.out, {1, 7, 64});
            auto* workspace = static_cast<std::byte*>(m.raw(nullptr, plan->workspace_bytes()));
            for (const int64_t n : {64, 1, 7}) {
                INFO(s.in << " -> " << s.out << ", batch " << n);
                TestData data(14);
                const Values x = data.normals(n * s.in), w = data.normals(s.in * s.out), b = data.normals(s.out),
                             d_y = data.normals(n * s.out);
                const Values held = data.normals(s.in * s.out);
                Values y, d_x(x.size()), d_w = held;
                for (int64_t i = 0; i < n; ++i)
                    for (int64_t o = 0; o < s.out; ++o) {
                        double sum = b[static_cast<size_t>(o)];
                        for (int64_t k = 0; k < s.in; ++k) {
                            const auto at_x = static_cast<size_t>(i * s.in + k), at_w = static_cast<size_t>(o * s.in + k);
                            const double d = d_y[static_cast<size_t>(i * s.out + o)];
                            sum += x[at_x] * w[at_w];
                            d_x[at_x] += d * w[at_w];
                            d_w[at_w] += d * x[at_x];
                        }
                        y.push_back(sum);
                    }
                const Extent in{.n = n, .c = s.in, .block = s.in}, out{.n = n, .c = s.out, .block = s.out};
                const Tensor tx = m.tensor(in, x), ty = m.unwritten(out), td_y = m.tensor(out, d_y), td_x = m.unwritten(in);
                const Array tw = m.real(w), td_w = m.real(held);
                const auto tolerance = [&](int64_t terms, const Values& want) {
                    return Tolerance{.absolute =
                                         kDirect * std::sqrt(static_cast<double>(terms + 1)) * m.rounding() * (root_mean_square(want) + 1)};
                };
                plan->forward(ty, tx, tw, m.real(b), workspace);
                check_close("forward", m.read(ty), y, tolerance(s.in, y));
                plan->backward_data(td_x, td_y, tw, workspace);
                check_close("backward_data", m.read(td_x), d_x, tolerance(s.out, d_x));
                plan->backward_weights(td_w, tx, td_y, workspace);
                check_close("backward_weights", m.read(td_w), d_w, tolerance(n, d_w));
            }
        }
    });
}

}  // namespace
}  // namespace jem
