#include "kernels/random.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <vector>

#include "kernels/sampling.h"
#include "tests/check.h"
#include "tests/draws.h"

namespace jem {
namespace {

constexpr std::array kStreams = {RandomStream::labelled_order,     RandomStream::labelled_augment, RandomStream::generative_order,
                                 RandomStream::generative_augment, RandomStream::input_noise,      RandomStream::buffer_index,
                                 RandomStream::reinit_choice,      RandomStream::init_weights,     RandomStream::init_pixels,
                                 RandomStream::sgld_noise,         RandomStream::parameters,       RandomStream::buffer_fill_weights,
                                 RandomStream::buffer_fill_pixels};

// The counter is (element low, element high ^ stream << 24, iteration, step), the key is the seed.
Random4 philox(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key, uint32_t stream) {
    const uint64_t element = uint64_t{counter[1] ^ (stream << 24)} << 32 | counter[0];
    return random4(uint64_t{key[1]} << 32 | key[0], static_cast<RandomStream>(stream), counter[2], counter[3], element);
}

TEST_CASE("random4_is_philox_4x32_10_of_the_documented_counter") {
    // Random123's published vectors (kat_vectors, philox4x32 10).
    struct Vector {
        std::array<uint32_t, 4> counter;
        std::array<uint32_t, 2> key;
        std::array<uint32_t, 4> out;
    };
    const Vector vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (const Vector& v : vectors)
        for (const uint32_t stream : {0u, 5u, 13u}) {
            const Random4 got = philox(v.counter, v.key, stream);
            for (size_t i = 0; i < 4; ++i) {
                INFO("stream " << stream << ", word " << i);
                CHECK(got.v[i] == v.out[i]);
            }
        }
}

TEST_CASE("streams_elements_iterations_and_steps_do_not_share_numbers") {
    std::set<std::array<uint32_t, 4>> seen;
    size_t drawn = 0;
    for (const RandomStream stream : kStreams)
        for (const uint32_t iteration : {0u, 1u, 78000u})
            for (const uint32_t step : {0u, 1u, 19u})
                // The last element is beyond any that a run can ask for: 2^40 pixels.
                for (const uint64_t element : {uint64_t{0}, uint64_t{1}, uint64_t{49999}, uint64_t{1} << 32, uint64_t{1} << 40}) {
                    const Random4 r = random4(7, stream, iteration, step, element);
                    seen.insert({r.v[0], r.v[1], r.v[2], r.v[3]});
                    ++drawn;
                }
    CHECK(seen.size() == drawn);
    // The numbers of the streams are part of every checkpoint's meaning.
    for (size_t i = 0; i < kStreams.size(); ++i) CHECK(static_cast<uint32_t>(kStreams[i]) == i + 1);
}

TEST_CASE("unit_circle_matches_cos_and_sin_over_the_whole_turn") {
    // The header's promise is 2e-7; half an f32 rounding of 1 is 6e-8 of that.
    constexpr double kCircleError = 2e-7;
    constexpr double kTurn = 2 * 3.14159265358979323846;
    double worst = 0, worst_at = 0;
    const auto look = [&](uint32_t bits) {
        const float u = static_cast<float>(bits) * 0x1p-24f;
        float c, s;
        unit_circle(u, c, s);
        const double angle = kTurn * static_cast<double>(u);
        const double error = std::max(std::abs(c - std::cos(angle)), std::abs(s - std::sin(angle)));
        if (!(error <= worst)) worst = error, worst_at = u;
    };
    for (uint32_t bits = 0; bits < 1u << 24; bits += 61) look(bits);
    // Both sides of every border between octants, and the ends.
    for (uint32_t border = 0; border <= 8; ++border)
        for (int64_t near = -3; near <= 3; ++near) {
            const int64_t bits = border * (int64_t{1} << 21) + near;
            if (bits >= 0 && bits < 1 << 24) look(static_cast<uint32_t>(bits));
        }
    INFO("u = " << worst_at);
    CHECK(worst <= kCircleError);
}

TEST_CASE("uniform_of_is_never_0_and_never_1") {
    CHECK(uniform_of(0) == 0x1p-24f);
    CHECK(uniform_of(0xffffffffu) == 1.0f - 0x1p-24f);
    double sum = 0;
    Values got, want;
    constexpr int kDraws = 100000;
    for (uint32_t i = 0; i < kDraws; ++i) {
        const uint32_t bits = i * (0xffffffffu / kDraws) + 12345;
        got.push_back(static_cast<double>(uniform_of(bits)));
        want.push_back(expected_uniform(bits));
        sum += got.back();
    }
    check_equal("uniform_of, exactly", got, want);
    CHECK(std::abs(sum / kDraws - 0.5) < 1e-4);  // an even sweep: 1 / kDraws, and the offset of the last step
}

TEST_CASE("index_of_stays_below_n_and_reaches_both_ends") {
    for (const uint32_t n : {1u, 2u, 3u, 9u, 10000u, 50000u, 0xffffffffu}) {
        CHECK(index_of(0, n) == 0);
        CHECK(index_of(0xffffffffu, n) == n - 1);
        TestData data(n);
        Values got, want;
        for (int i = 0; i < 1000; ++i) {
            const auto bits = static_cast<uint32_t>(data.bits());
            got.push_back(index_of(bits, n));
            want.push_back(expected_index(bits, n));
        }
        check_equal("index_of", got, want);
    }
}

TEST_CASE("normals_of_are_box_muller_of_the_four_words") {
    Values got, want;
    for (uint64_t i = 0; i < 20000; ++i) {
        const Random4 r = random4(3, RandomStream::sgld_noise, 5, 2, i);
        const Normal4 z = normals_of(r);
        for (int lane = 0; lane < 4; ++lane) {
            got.push_back(static_cast<double>(z.v[lane]));
            want.push_back(expected_normal(r, lane));
        }
    }
    check_close("normal draws", got, want, Tolerance{.absolute = kNormalError});
    // The ends of the range give finite numbers.
    for (const uint32_t word : {0u, 0xffffffffu})
        for (const float z : normals_of({{word, word, word, word}}).v) CHECK(std::isfinite(z));
}

TEST_CASE("normals_have_the_moments_of_the_standard_normal") {
    constexpr int64_t kDraws = 1000000;
    // Standard errors are 1, sqrt(2), sqrt(15) and sqrt(96) over sqrt(kDraws) for the first four moments (var of z^k is m_2k - m_k^2).
    constexpr double kDeviations = 4.5;
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0, product = 0;
    for (int64_t i = 0; i < kDraws / 4; ++i) {
        const Normal4 z = normals_of(random4(11, RandomStream::init_pixels, 0, 0, static_cast<uint64_t>(i)));
        for (const float value : z.v) {
            const double v = value;
            m1 += v, m2 += v * v, m3 += v * v * v, m4 += v * v * v * v;
        }
        product += static_cast<double>(z.v[0]) * static_cast<double>(z.v[1]) + static_cast<double>(z.v[2]) * static_cast<double>(z.v[3]) +
                   static_cast<double>(z.v[0]) * static_cast<double>(z.v[2]) + static_cast<double>(z.v[1]) * static_cast<double>(z.v[3]);
    }
    const double n = kDraws, limit = kDeviations / std::sqrt(n);
    CHECK(std::abs(m1 / n) < limit);
    CHECK(std::abs(m2 / n - 1) < limit * std::sqrt(2.0));
    CHECK(std::abs(m3 / n) < limit * std::sqrt(15.0));
    CHECK(std::abs(m4 / n - 3) < limit * std::sqrt(96.0));
    CHECK(std::abs(product / n) < limit);  // the four of a group are independent
}

std::vector<uint32_t> order_of(uint32_t n, uint64_t seed, RandomStream stream, uint32_t order) {
    std::vector<uint32_t> out;
    for (uint32_t i = 0; i < n; ++i) out.push_back(shuffled(i, n, seed, stream, order));
    return out;
}

TEST_CASE("shuffled_is_a_permutation_for_every_n") {
    for (const uint32_t n : {1u, 2u, 3u, 4u, 5u, 15u, 16u, 17u, 64u, 65u, 97u, 1000u, 50000u})
        for (uint32_t order = 0; order < 3; ++order) {
            std::vector<uint32_t> found = order_of(n, 1, RandomStream::labelled_order, order);
            std::sort(found.begin(), found.end());
            for (uint32_t i = 0; i < n; ++i)
                if (found[i] != i) {
                    FAIL_CHECK("n " << n << ", order " << order << ": place " << i << " of the sorted images is " << found[i]);
                    break;
                }
        }
}

TEST_CASE("shuffled_differs_between_orders_streams_and_seeds") {
    for (const uint32_t n : {64u, 97u, 1000u}) {
        const auto first = order_of(n, 1, RandomStream::labelled_order, 0);
        const auto same_places = [&](const std::vector<uint32_t>& other) {
            int same = 0;
            for (uint32_t i = 0; i < n; ++i) same += first[i] == other[i] ? 1 : 0;
            return same;
        };
        // Independent permutations agree in 1 place on average, in more than 8 with probability 1e-6.
        constexpr int kAgreements = 8;
        CHECK(same_places(order_of(n, 1, RandomStream::labelled_order, 1)) <= kAgreements);
        CHECK(same_places(order_of(n, 1, RandomStream::generative_order, 0)) <= kAgreements);
        CHECK(same_places(order_of(n, 2, RandomStream::labelled_order, 0)) <= kAgreements);
        std::vector<uint32_t> identity(n);
        for (uint32_t i = 0; i < n; ++i) identity[i] = i;
        CHECK(same_places(identity) <= kAgreements);
    }
}

TEST_CASE("shuffled_puts_every_image_in_every_place_equally_often") {
    constexpr uint32_t kCount = 10, kOrders = 20000;
    std::array<std::array<int, kCount>, kCount> times = {};
    for (uint32_t order = 0; order < kOrders; ++order)
        for (uint32_t i = 0; i < kCount; ++i) ++times[i][shuffled(i, kCount, 9, RandomStream::generative_order, order)];
    // Binomial: mean 2000, standard deviation sqrt(20000 * 0.1 * 0.9) = 42; 100 places.
    constexpr int kDeviation = 5 * 42;
    for (uint32_t i = 0; i < kCount; ++i)
        for (uint32_t image = 0; image < kCount; ++image) {
            INFO("image " << image << " in place " << i);
            CHECK(std::abs(times[i][image] - 2000) <= kDeviation);
        }
}

// Both widths of StartImages, 3 chains of 105 pixels: no multiple of 4 nor of 64.
template <int Width>
std::vector<double> start_with_width(bool informative) {
    constexpr int64_t kChains = 3, kPixels = 105, kImages = 5;
    TestData data(21);
    std::vector<double> x(kChains * kPixels, -9), buffer(2 * kPixels, 0.25), weights;
    for (int64_t i = 0; i < kChains * kImages; ++i) weights.push_back(data.uniform(-0.5, 0.9));
    std::vector<uint8_t> images(kImages * kPixels);
    for (uint8_t& b : images) b = static_cast<uint8_t>(data.index(256));
    const std::vector<int32_t> index = {1, 0, 1}, fresh = {0, -1, 0}, order = {4, 2, 0, 1, 3}, begin = {0, 5};
    IterationState state;
    state.iteration = 12;
    const StartImages<double, Width> start{.x = x.data(),
                                           .buffer = buffer.data(),
                                           .index = index.data(),
                                           .fresh = fresh.data(),
                                           .weights = informative ? weights.data() : nullptr,
                                           .images = images.data(),
                                           .class_order = order.data(),
                                           .class_begin = begin.data(),
                                           .state = &state,
                                           .pixels = kPixels,
                                           .stride = kImages,
                                           .first_chain = 100,
                                           .stream = RandomStream::init_pixels,
                                           .seed = 77};
    for (int64_t item = 0; item < kChains * ((kPixels + Width - 1) / Width); ++item) start(item);
    return x;
}

TEST_CASE("start_images_draw_does_not_depend_on_the_width_of_an_item") {
    check_equal("uniform start", start_with_width<4>(false), start_with_width<64>(false));
    // The weighted sum is in the same order, but the compiler may fuse its products or not.
    constexpr double kFused = 1e-14;
    check_close("informative start", start_with_width<4>(true), start_with_width<64>(true), Tolerance{.absolute = kFused});
}

}  // namespace
}  // namespace jem
