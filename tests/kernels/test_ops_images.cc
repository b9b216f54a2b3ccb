// From resident bytes to a batch: the order of an epoch, crop, flip, noise, labels.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <stdexcept>
#include <vector>

#include "tests/check.h"
#include "tests/draws.h"
#include "tests/on_device.h"

namespace jem {
namespace {

ResidentImages images_of(OnDevice& m, int64_t count, const std::array<int64_t, 3>& size, const std::vector<uint8_t>& pixels) {
    std::vector<int32_t> labels;
    for (int64_t i = 0; i < count; ++i) labels.push_back(static_cast<int32_t>((i * 7 + 3) % 11));
    return {.pixels = m.bytes(pixels),
            .labels = m.integers(labels),
            .class_order = {},
            .class_begin = {},
            .count = count,
            .height = size[0],
            .width = size[1],
            .channels = size[2]};
}

Array room_for_draws(OnDevice& m, int64_t batch) {
    return m.bytes(std::vector<uint8_t>(static_cast<size_t>(batch) * sizeof(ImageDraw), 0xEE));
}

std::vector<ImageDraw> draws_of(OnDevice& m, int64_t batch, int64_t count, uint32_t iteration, const BatchDraw& how) {
    const Array draws = room_for_draws(m, batch);
    IterationState start;
    start.iteration = iteration, start.step = 5;
    m.ops().draw_images(draws, images_of(m, count, {1, 1, 1}, std::vector<uint8_t>(static_cast<size_t>(count))), m.state(start), how);
    return m.read_as<ImageDraw>(draws.data, batch);
}

BatchDraw labelled(bool crop, bool flip) {
    return {.order = RandomStream::labelled_order, .augment = RandomStream::labelled_augment, .crop = crop, .flip = flip, .seed = 13};
}

TEST_CASE("draw_images_visits_each_image_at_most_once_in_an_epoch") {
    on_every_device([](OnDevice& m) {
        struct Size {
            int64_t count, batch;
        };
        for (const Size& s : {Size{50, 7}, Size{64, 64}, Size{5, 5}, Size{9, 2}, Size{3, 1}}) {
            const auto iterations = static_cast<uint32_t>(s.count / s.batch);
            std::set<std::vector<int32_t>> orders;
            for (uint32_t epoch = 0; epoch < 4; ++epoch) {
                INFO(s.count << " images, batch " << s.batch << ", epoch " << epoch);
                std::vector<int32_t> order;
                for (uint32_t i = 0; i < iterations; ++i)
                    for (const ImageDraw& d : draws_of(m, s.batch, s.count, epoch * iterations + i, labelled(false, false))) {
                        CHECK(d.index >= 0);
                        CHECK(d.index < s.count);
                        CHECK((d.dy == 0 && d.dx == 0 && d.flip == 0));
                        order.push_back(d.index);
                    }
                CHECK(std::set<int32_t>(order.begin(), order.end()).size() == order.size());
                for (size_t i = 0; i < order.size(); ++i)
                    CHECK(order[i] == static_cast<int32_t>(shuffled(static_cast<uint32_t>(i), static_cast<uint32_t>(s.count), 13,
                                                                    RandomStream::labelled_order, epoch)));
                orders.insert(order);
            }
            if (s.count >= 9) CHECK(orders.size() == 4);
        }
    });
}

TEST_CASE("draw_images_streams_have_orders_and_crops_of_their_own") {
    on_every_device([](OnDevice& m) {
        BatchDraw generative = labelled(true, true);
        generative.order = RandomStream::generative_order;
        const auto a = draws_of(m, 64, 1000, 3, labelled(true, true)), b = draws_of(m, 64, 1000, 3, generative);
        generative.augment = RandomStream::generative_augment;
        const auto c = draws_of(m, 64, 1000, 3, generative);
        int same_index = 0, same_crop = 0;
        for (size_t i = 0; i < a.size(); ++i) {
            same_index += a[i].index == b[i].index ? 1 : 0;
            CHECK((a[i].dy == b[i].dy && a[i].dx == b[i].dx && a[i].flip == b[i].flip));
            CHECK(b[i].index == c[i].index);
            same_crop += b[i].dy == c[i].dy && b[i].dx == c[i].dx ? 1 : 0;
        }
        CHECK(same_index <= 4);  // 64 / 1000 on average
        CHECK(same_crop <= 8);   // 64 / 81 on average
    });
}

TEST_CASE("draw_images_crops_within_4_pixels_and_flips_half_each_equally_often") {
    on_every_device([](OnDevice& m) {
        constexpr int kBatch = 16200;
        constexpr double kDeviations = 5;
        const auto draws = draws_of(m, kBatch, kBatch, 2, labelled(true, true));
        // times[flip][dy + 4][dx + 4]: the three are independent, each place has one half of a ninth of a ninth.
        std::array<std::array<std::array<int, 9>, 9>, 2> times = {};
        for (const ImageDraw& d : draws) {
            REQUIRE((d.dy >= -4 && d.dy <= 4 && d.dx >= -4 && d.dx <= 4));
            REQUIRE((d.flip == 0 || d.flip == 1));
            const int32_t down = d.dy + 4, right = d.dx + 4;
            ++times.at(static_cast<size_t>(d.flip)).at(static_cast<size_t>(down)).at(static_cast<size_t>(right));
        }
        const auto check_count = [&](int got, double p) {
            INFO(got << " times, " << kBatch * p << " expected");
            CHECK(std::abs(got - kBatch * p) <= kDeviations * std::sqrt(kBatch * p * (1 - p)));
        };
        for (size_t flip = 0; flip < 2; ++flip)
            for (size_t dy = 0; dy < 9; ++dy)
                for (size_t dx = 0; dx < 9; ++dx) check_count(times[flip][dy][dx], 1.0 / 162);
        for (const ImageDraw& d : draws_of(m, 500, 500, 2, labelled(true, false))) CHECK(d.flip == 0);
        for (const ImageDraw& d : draws_of(m, 500, 500, 2, labelled(false, true))) CHECK((d.dy == 0 && d.dx == 0));
        // Another iteration, other crops.
        const auto later = draws_of(m, kBatch, kBatch, 3, labelled(true, true));
        int same = 0;
        for (size_t i = 0; i < draws.size(); ++i) same += draws[i].dy == later[i].dy && draws[i].dx == later[i].dx ? 1 : 0;
        check_count(same, 1.0 / 81);
    });
}

// Pads by reflection without repeating the border, as the data pipelines of the scripts do, then crops, then flips.
Values pad_crop_flip(const std::vector<uint8_t>& pixels, const std::array<int64_t, 3>& size, const ImageDraw& draw) {
    const int64_t height = size[0], width = size[1], channels = size[2], wide = width + 8;
    std::vector<double> padded(static_cast<size_t>((height + 8) * wide * channels), -100);
    const auto at = [&](int64_t row, int64_t column, int64_t c) -> double& {
        return padded[static_cast<size_t>((row * wide + column) * channels + c)];
    };
    for (int64_t c = 0; c < channels; ++c) {
        for (int64_t row = 0; row < height; ++row)
            for (int64_t column = 0; column < width; ++column)
                at(row + 4, column + 4, c) = pixels[static_cast<size_t>(((draw.index * height + row) * width + column) * channels + c)];
        for (int64_t row = 4; row < height + 4; ++row)
            for (int64_t k = 1; k <= 4; ++k) {
                at(row, 4 - k, c) = at(row, 4 + k, c);
                at(row, width + 3 + k, c) = at(row, width + 3 - k, c);
            }
        for (int64_t column = 0; column < wide; ++column)
            for (int64_t k = 1; k <= 4; ++k) {
                at(4 - k, column, c) = at(4 + k, column, c);
                at(height + 3 + k, column, c) = at(height + 3 - k, column, c);
            }
    }
    Values out;
    for (int64_t row = 0; row < height; ++row)
        for (int64_t column = 0; column < width; ++column)
            for (int64_t c = 0; c < channels; ++c) {
                const int64_t from = draw.flip != 0 ? width - 1 - column : column;
                out.push_back(2 * (at(row + 4 + draw.dy, from + 4 + draw.dx, c) / 255) - 1);
            }
    return out;
}

TEST_CASE("crop_flip_is_reflect_pad_crop_flip_and_noise") {
    on_every_device([](OnDevice& m) {
        constexpr int64_t kCount = 6;
        for (const std::array<int64_t, 3>& size : {std::array<int64_t, 3>{5, 5, 1}, {7, 9, 1}, {8, 6, 3}, {32, 32, 3}})
            for (const double noise : {0.0, 0.03}) {
                INFO(size[0] << "x" << size[1] << "x" << size[2] << ", noise " << noise);
                const int64_t pixels = size[0] * size[1] * size[2];
                TestData data(1);
                std::vector<uint8_t> bytes(static_cast<size_t>(kCount * pixels));
                for (uint8_t& b : bytes) b = static_cast<uint8_t>(data.index(256));
                // The extremes, a plain image, and some in between; image 4 twice.
                const std::vector<ImageDraw> draws = {{0, 0, 0, 0}, {5, -4, -4, 0}, {4, 4, 4, 0},  {4, 4, -4, 1}, {3, -4, 4, 1},
                                                      {2, 1, 3, 1}, {1, -2, 0, 0},  {0, 0, -3, 1}, {1, 3, 2, 0}};
                const int64_t batch = static_cast<int64_t>(draws.size());
                const Array held{m.raw(draws.data(), draws.size() * sizeof(ImageDraw)), DType::u8,
                                 static_cast<int64_t>(draws.size() * sizeof(ImageDraw))};
                const ResidentImages images = images_of(m, kCount, size, bytes);
                Values want;
                for (const ImageDraw& d : draws)
                    for (const double v : pad_crop_flip(bytes, size, d)) want.push_back(v);
                IterationState start;
                start.iteration = 8, start.step = 1;
                for (size_t i = 0; i < want.size(); ++i)
                    if (noise > 0)
                        want[i] += noise * expected_normal(random4(13, RandomStream::input_noise, 8, 2, i / 4), static_cast<int>(i % 4));
                const Array x = m.unwritten(batch * pixels);
                BatchDraw how = labelled(true, true);
                how.noise = noise, how.noise_salt = 2;
                m.ops().crop_flip(x, held, images, m.state(start), how);
                Tolerance tolerance = m.roundings(3, 2);
                tolerance.absolute += noise * kNormalError;
                check_close("x", m.read(x), want, tolerance);
                const Array labels = m.integers(std::vector<int32_t>(draws.size(), -1));
                m.ops().gather_labels(labels, held, images);
                Values want_labels;
                for (const ImageDraw& d : draws) want_labels.push_back((d.index * 7 + 3) % 11);
                check_equal("labels", m.read(labels), want_labels);
            }
    });
}

TEST_CASE("bytes_0_and_255_become_minus_1_and_1_exactly") {
    on_every_device([](OnDevice& m) {
        const ResidentImages images = images_of(m, 1, {1, 2, 1}, {0, 255});
        const ImageDraw plain = {0, 0, 0, 0};
        const Array x = m.unwritten(2);
        m.ops().crop_flip(x, {m.raw(&plain, sizeof plain), DType::u8, sizeof plain}, images, m.state(), labelled(false, false));
        check_equal("x", m.read(x), {-1, 1});
    });
}

TEST_CASE("input_noise_of_an_iteration_s_batches_differs_by_its_salt") {
    on_every_device([](OnDevice& m) {
        const ResidentImages images = images_of(m, 1, {8, 8, 1}, std::vector<uint8_t>(64, 100));
        const ImageDraw plain = {0, 0, 0, 0};
        const Array held{m.raw(&plain, sizeof plain), DType::u8, sizeof plain}, x = m.unwritten(64);
        std::set<Values> seen;
        for (const uint32_t salt : {0u, 1u, 2u}) {
            BatchDraw how = labelled(false, false);
            how.noise = 0.1, how.noise_salt = salt;
            m.ops().crop_flip(x, held, images, m.state(), how);
            seen.insert(m.read(x));
        }
        CHECK(seen.size() == 3);
    });
}

// One direction of bilinear resizing: of each output its two values' places, and the weight of the second.
struct Between {
    int64_t low, high;
    double weight;
};
Between between(int64_t i, int64_t size, int64_t outputs, ResizeFrom from) {
    const double scale = static_cast<double>(size) / static_cast<double>(outputs), at = static_cast<double>(i);
    const double place = from == ResizeFrom::pixel_centres ? std::max(0.0, (at + 0.5) * scale - 0.5) : at * scale;
    const double low = std::floor(place);
    const auto last = static_cast<double>(size - 1);
    return {static_cast<int64_t>(low), static_cast<int64_t>(std::min(low + 1, last)), place - low};
}

TEST_CASE("resizing_is_bilinear_from_pixel_centres_or_corners_and_copies_grey_to_all_channels") {
    on_every_device([](OnDevice& m) {
        struct Size {
            int64_t channels, height, width, to_channels, to_height, to_width;
        };
        for (const Size& s :
             {Size{3, 4, 6, 3, 9, 11}, Size{1, 5, 4, 3, 13, 7}, Size{3, 9, 11, 3, 4, 6}, Size{1, 1, 1, 1, 2, 3}, Size{3, 5, 4, 3, 5, 4}})
            for (const ResizeFrom from : {ResizeFrom::pixel_centres, ResizeFrom::pixel_corners}) {
                INFO(s.height << "x" << s.width << " to " << s.to_height << "x" << s.to_width << ", corners "
                              << (from == ResizeFrom::pixel_corners));
                const Extent in{.n = 2, .c = s.channels, .h = s.height, .w = s.width, .block = s.channels};
                const Extent out{.n = 2, .c = s.to_channels, .h = s.to_height, .w = s.to_width, .block = s.to_channels};
                const Values x = TestData(3).uniforms(in.count(), -1, 1);  // NCHW
                Values want;
                for (int64_t n = 0; n < out.n; ++n)
                    for (int64_t c = 0; c < out.c; ++c)
                        for (int64_t i = 0; i < out.h; ++i)
                            for (int64_t j = 0; j < out.w; ++j) {
                                const Between v = between(i, in.h, out.h, from), h = between(j, in.w, out.w, from);
                                const auto at = [&](int64_t row, int64_t column) {
                                    return x[static_cast<size_t>(((n * in.c + std::min(c, in.c - 1)) * in.h + row) * in.w + column)];
                                };
                                const double value = (1 - v.weight) * ((1 - h.weight) * at(v.low, h.low) + h.weight * at(v.low, h.high)) +
                                                     v.weight * ((1 - h.weight) * at(v.high, h.low) + h.weight * at(v.high, h.high));
                                want.push_back(1.5 * value - 0.25);
                            }
                const Tensor y = m.unwritten(out);
                m.ops().resize(y, m.tensor(in, x), {.from = from, .scale = 1.5, .offset = -0.25});
                // A place, up to 11, has some three roundings, and where it is a whole number the value is the same from either side.
                check_close("y", m.read(y), want, m.roundings(150));
            }
    });
}

TEST_CASE("resizing_meets_known_values") {
    on_every_device([](OnDevice& m) {
        const Extent in{.n = 1, .c = 1, .h = 1, .w = 2, .block = 1}, out{.n = 1, .c = 1, .h = 1, .w = 4, .block = 1};
        const Tensor x = m.tensor(in, {0, 8}), y = m.unwritten(out);
        m.ops().resize(y, x, {});
        check_equal("centres", m.read(y), {0, 2, 6, 8});
        m.ops().resize(y, x, {.from = ResizeFrom::pixel_corners});
        check_equal("corners", m.read(y), {0, 4, 8, 8});
    });
}

TEST_CASE("resizing_refuses_images_of_other_numbers_and_channels") {
    const auto device = make_reference_device(DType::f32);
    OnDevice m(*device);
    const auto images = [&](int64_t n, int64_t c, int64_t block) { return m.unwritten({.n = n, .c = c, .h = 2, .w = 2, .block = block}); };
    const Tensor y = images(2, 4, 4);
    CHECK_NOTHROW(m.ops().resize(y, images(2, 4, 4), {}));
    CHECK_THROWS_AS(m.ops().resize(y, images(1, 4, 4), {}), std::invalid_argument);
    CHECK_THROWS_AS(m.ops().resize(y, images(2, 2, 2), {}), std::invalid_argument);
    CHECK_THROWS_AS(m.ops().resize(y, images(2, 4, 2), {}), std::invalid_argument);
}

}  // namespace
}  // namespace jem
