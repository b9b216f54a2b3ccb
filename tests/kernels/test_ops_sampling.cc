// SGLD, the chains' starting points and the replay buffer against loops in double.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/random.h"
#include "tests/check.h"
#include "tests/draws.h"
#include "tests/on_device.h"
#include "tests/scalars.h"

namespace jem {
namespace {

// Roundings of a step of three terms below 4.
constexpr double kStep = 4, kMagnitude = 4;
// A start is 2/255 times a weighted sum of bytes: partial sums walk up to some 500, each of the (up to 60) additions rounds; times 2/255.
constexpr double kStart = 40;

struct SgldCase {
    double step_size, noise, grad_clamp;
    bool pixel_clamp;
};
const SgldCase kSgldCases[] = {
    {1, 0, 1, true},         // SADA-JEM
    {1, 0.01, 0, false},     // JEM
    {0.5, 0.75, 0.1, true},  // the noise leaves [-1, 1]
    {0.3, 0, 0, true},       //
    {2, 0.4, 0.25, false},   //
};

TEST_CASE("sgld_step_clamps_the_gradient_adds_noise_and_clamps_after_the_noise") {
    on_every_device([](OnDevice& m) {
        constexpr uint64_t kSeed = 0x123456789ABCDEFu;
        constexpr int64_t kSteps = 3;
        for (const int64_t count : {1, 2, 3, 4, 5, 147, 3072 * 2 + 3})
            for (const SgldCase& s : kSgldCases)
                for (const bool given : {false, true}) {
                    INFO(count << " values, step size " << s.step_size << ", noise " << s.noise << std::string(given ? " given" : " drawn")
                               << ", clamps " << s.grad_clamp << " " << s.pixel_clamp);
                    TestData data(1);
                    const Values x = data.uniforms(count, -1, 1), g = data.normals(count, 0, 0.5), noise = data.normals(kSteps * count);
                    IterationState start;
                    start.iteration = 41, start.step = 2;
                    Values want;
                    for (size_t i = 0; i < x.size(); ++i) {
                        const Random4 r = random4(kSeed, RandomStream::sgld_noise, 41, 2, i / 4);
                        const double z = given ? noise[2 * x.size() + i] : expected_normal(r, static_cast<int>(i % 4));
                        const double d = s.grad_clamp > 0 ? std::clamp(g[i], -s.grad_clamp, s.grad_clamp) : g[i];
                        const double value = x[i] + s.step_size * d + s.noise * z;
                        want.push_back(s.pixel_clamp ? std::clamp(value, -1.0, 1.0) : value);
                    }
                    const Array pixels = m.real(x);
                    m.ops().sgld_step(pixels, m.real(g), given ? m.real(noise) : Array{}, m.state(start),
                                      {.step_size = s.step_size,
                                       .noise = s.noise,
                                       .grad_clamp = s.grad_clamp,
                                       .pixel_clamp = s.pixel_clamp,
                                       .seed = kSeed});
                    Tolerance tolerance = m.roundings(kStep, kMagnitude);
                    if (!given) tolerance.absolute += s.noise * kNormalError;
                    check_close("x", m.read(pixels), want, tolerance);
                }
    });
}

TEST_CASE("reflect_folds_at_both_ends_and_leaves_what_lies_between_alone") {
    on_every_device([](OnDevice& m) {
        const Values x = {-1, -0.25, 0, 0.7f, 1, 1.25, 2.5, 3.5, 5.5, -1.5, -3.25, -7.5, 100.5};
        const Array values = m.real(x);
        m.ops().reflect(values);
        check_close("x", m.read(values), {-1, -0.25, 0, 0.7f, 1, 0.75, -0.5, -0.5, 0.5, -0.5, 0.75, 0.5, 0.5}, {1e-6, 0});
        const Array bad = m.real({std::nan("")});
        m.ops().reflect(bad);
        CHECK(std::isnan(m.read(bad)[0]));
    });
}

TEST_CASE("a_reflected_normal_s_density_is_that_of_all_places_reflected_there") {
    const double pi = std::acos(-1.0);
    for (const double sigma : {0.01, 0.2, 0.5})
        for (const double mean : {-9.3, -2.0, -1.0, -0.4, 0.99, 1.6, 2.0, 6.1}) {
            INFO("sigma " << sigma << ", mean " << mean);
            // it integrates to one, and agrees with the sum of many more places
            constexpr int kPoints = 20000;
            double integral = 0;
            for (int i = 0; i < kPoints; ++i) {
                const double y = -1 + (i + 0.5) * 2 / kPoints;
                const double got = std::exp(log_of_reflected_normal(y, mean, sigma)) / (sigma * std::sqrt(2 * pi));
                integral += got * 2 / kPoints;
                if (i % 1999 != 0) continue;
                double want = 0;
                for (int k = -8; k <= 8; ++k)
                    for (const double place : {y + 4 * k, 2 - y + 4 * k})
                        want += std::exp(-(place - mean) * (place - mean) / (2 * sigma * sigma)) / (sigma * std::sqrt(2 * pi));
                CHECK(got == doctest::Approx(want).epsilon(1e-9));
            }
            CHECK(integral == doctest::Approx(1).epsilon(1e-6));
        }
}

TEST_CASE("sgld_step_draws_anew_for_each_step_iteration_and_seed") {
    on_every_device([](OnDevice& m) {
        std::set<Values> seen;
        int runs = 0;
        for (const uint32_t iteration : {0u, 1u})
            for (const uint32_t step : {0u, 1u})
                for (const uint64_t seed : {uint64_t{1}, uint64_t{1} << 32}) {
                    IterationState start;
                    start.iteration = iteration, start.step = step;
                    const Array x = m.real(Values(8));
                    m.ops().sgld_step(x, m.real(Values(8)), {}, m.state(start), {.noise = 0.1, .seed = seed});
                    seen.insert(m.read(x));
                    ++runs;
                }
        CHECK(static_cast<int>(seen.size()) == runs);
    });
}

TEST_CASE("sgld_step_keeps_a_nan_for_the_flag_to_see") {
    on_every_device([](OnDevice& m) {
        const Array x = m.real({0, 0.5, std::nan("")});
        m.ops().sgld_step(x, m.real({std::nan(""), HUGE_VAL, 0}), {}, m.state(), {.step_size = 1, .grad_clamp = 1, .pixel_clamp = true});
        check_equal("x", m.read(x), {std::nan(""), 1, std::nan("")});
    });
}

TEST_CASE("sign_step_stays_within_its_radius_and_in_the_pixels_range") {
    on_every_device([](OnDevice& m) {
        // by the sign alone; back to the edge of the ball; to the edge of the pixels; along neither where the gradient is 0
        const Array x = m.real({0.25, 0.5, 0.875, -1, 0.5}), start = m.real({0.25, 0.25, 0.875, -1, 0.5});
        m.ops().sign_step(x, m.real({-1e-9, 100, 3, -2, 0}), start, 0.25, 0.375);
        check_equal("x", m.read(x), {0, 0.625, 1, -1, 0.5});
        const Array broken = m.real({0.5});
        m.ops().sign_step(broken, m.real({std::nan("")}), m.real({0.5}), 0.25, 0.375);
        CHECK(std::isnan(m.read(broken).front()));
    });
}

TEST_CASE("a_normalised_step_has_its_length_and_the_ball_and_the_pixels_range_are_kept") {
    on_every_device([](OnDevice& m) {
        // along (3, 4) / 5; an image without a gradient stays; out of the ball and back to its edge; out of the pixels' range
        const Array x = m.real({0, 0, 0.5, -0.5, 0.1, 0.2, 0.9, 0}), centre = m.real({0, 0, 0.5, -0.5, 0, 0, 0.9, 0});
        const Array norms = m.real({0, 0, 0, 0});
        m.ops().normalised_step(x, m.real({3e-9, 4e-9, 0, 0, 0.6, 0.8, 7, 0}), norms, 0.5);
        check_close("stepped", m.read(x), {0.3, 0.4, 0.5, -0.5, 0.4, 0.6, 1.4, 0}, m.roundings(8));
        m.ops().project_on_ball(x, centre, norms, 0.5);
        const double edge = 0.5 / std::sqrt(0.52);
        check_close("projected", m.read(x), {0.3, 0.4, 0.5, -0.5, 0.4 * edge, 0.6 * edge, 1, 0}, m.roundings(8));
        const Array broken = m.real({0.5, 0.5});
        m.ops().normalised_step(broken, m.real({std::nan(""), 1}), m.real({0}), 0.25);
        CHECK(std::isnan(m.read(broken).front()));
    });
}

TEST_CASE("sgld_gradient_norm_is_the_root_mean_square_of_the_images_norms") {
    constexpr double kNormError = 1e-12;  // exact squares, summed in double
    on_every_device([](OnDevice& m) {
        for (const int64_t images : {1, 3, 7}) {
            const Values g = TestData(2).normals(images * 3072);
            double sum = 0;
            for (const double v : g) sum += v * v;
            IterationState* state = m.state();
            m.ops().sgld_gradient_norm(state, m.real(g), images, kChain.norm);
            check_close("norm", {m.read(state).scalars[kChain.norm][0]}, {std::sqrt(sum / static_cast<double>(images))},
                        {.relative = kNormError});
            CHECK(m.read(state).diverged == 0);
        }
        for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
            IterationState* state = m.state();
            m.ops().sgld_gradient_norm(state, m.real({1, 2, bad, 4}), 1, kChain.norm);
            CHECK(m.read(state).diverged == 1);
            m.ops().sgld_gradient_norm(state, m.real({1, 2, 3, 4}), 1, kChain.norm);
            CHECK(m.read(state).diverged == 1);  // sticky
        }
    });
}

TEST_CASE("draw_chains_follows_the_documented_streams") {
    on_every_device([](OnDevice& m) {
        constexpr int64_t kChains = 500;
        constexpr uint32_t kBuffer = 37, kClasses = 5;
        IterationState start;
        start.iteration = 9, start.step = 3;
        const Array index = m.integers(std::vector<int32_t>(kChains, -7)), fresh = m.integers(std::vector<int32_t>(kChains, -7));
        m.ops().draw_chains(index, fresh, m.state(start), kBuffer, kClasses, 0.3, 5);
        Values want_index, want_fresh;
        for (uint64_t n = 0; n < kChains; ++n) {
            want_index.push_back(expected_index(random4(5, RandomStream::buffer_index, 9, 0, n).v[0], kBuffer));
            const Random4 choice = random4(5, RandomStream::reinit_choice, 9, 0, n);
            want_fresh.push_back(expected_uniform(choice.v[0]) < 0.3 ? static_cast<double>(expected_index(choice.v[1], kClasses)) : -1.0);
        }
        check_equal("index", m.read(index), want_index);
        check_equal("fresh", m.read(fresh), want_fresh);
    });
}

TEST_CASE("draw_chains_of_labels_stays_in_the_places_of_their_classes_and_starts_from_them") {
    on_every_device([](OnDevice& m) {
        constexpr int64_t kChains = 700;
        constexpr int32_t kBuffer = 23, kClasses = 5;  // classes 0 to 2 hold five images, 3 and 4 four
        const std::vector<int32_t> begin = {0, 5, 10, 15, 19, 23};
        IterationState start;
        start.iteration = 4;
        const Array labels = m.integers(std::vector<int32_t>(kChains, -7));
        m.ops().draw_labels(labels, m.state(start), kClasses, 5);
        const Values classes = m.read(labels);
        for (uint64_t n = 0; n < kChains; ++n)
            CHECK(classes[n] == expected_index(random4(5, RandomStream::chain_labels, 4, 0, n).v[0], kClasses));
        const auto draw = [&](int64_t starts, int64_t first) {
            const Array index = m.integers(std::vector<int32_t>(kChains, -7)), fresh = m.integers(std::vector<int32_t>(kChains, -7));
            m.ops().draw_chains(index, fresh, m.state(start), kBuffer, starts, 0.3, 5,
                                {.labels = labels, .classes = kClasses, .first = first});
            return std::pair(m.read(index), m.read(fresh));
        };
        const auto [index, fresh] = draw(kClasses, 0);
        std::vector<int> seen(kBuffer);
        for (size_t n = 0; n < kChains; ++n) {
            const auto c = static_cast<size_t>(classes[n]);
            REQUIRE(index[n] >= begin[c]);
            REQUIRE(index[n] < begin[c + 1]);
            ++seen[static_cast<size_t>(index[n])];
            CHECK((fresh[n] == -1 || fresh[n] == classes[n]));
        }
        CHECK(*std::min_element(seen.begin(), seen.end()) > 0);
        // one Gaussian of all images: there is one class to start from
        for (const double c : draw(1, 0).second) CHECK((c == -1 || c == 0));
        CHECK(draw(kClasses, kChains).first != index);  // chains of another kind draw other numbers
    });
}

TEST_CASE("draw_chains_is_uniform_over_buffer_and_classes_and_starts_afresh_as_often_as_asked") {
    constexpr int64_t kChains = 50000;
    constexpr int32_t kBuffer = 20, kClasses = 10;
    constexpr double kDeviations = 5;
    on_every_device([&](OnDevice& m) {
        const Array index = m.integers(std::vector<int32_t>(kChains)), fresh = m.integers(std::vector<int32_t>(kChains));
        m.ops().draw_chains(index, fresh, m.state(), kBuffer, kClasses, 0.05, 1);
        std::vector<int> at(kBuffer), of(kClasses);
        int started = 0;
        for (const double i : m.read(index)) {
            REQUIRE(i >= 0);
            REQUIRE(i < kBuffer);
            ++at[static_cast<size_t>(i)];
        }
        for (const double c : m.read(fresh)) {
            REQUIRE(c >= -1);
            REQUIRE(c < kClasses);
            if (c < 0) continue;
            ++started;
            ++of[static_cast<size_t>(c)];
        }
        const auto check_count = [&](const char* what, int got, double p) {
            INFO(what << ": " << got);
            CHECK(std::abs(got - kChains * p) <= kDeviations * std::sqrt(kChains * p * (1 - p)));
        };
        for (const int times : at) check_count("a buffer image", times, 1.0 / kBuffer);
        for (const int times : of) check_count("a class", times, 0.05 / kClasses);
        check_count("fresh", started, 0.05);
        for (const double frequency : {0.0, 1.0}) {
            m.ops().draw_chains(index, fresh, m.state(), kBuffer, kClasses, frequency, 1);
            const Values got = m.read(fresh);
            CHECK(std::count_if(got.begin(), got.end(), [](double c) { return c >= 0; }) == (frequency > 0 ? kChains : 0));
        }
    });
}

// Images of a few classes of different sizes, in mixed order.
struct ImageSetOnDevice {
    std::vector<uint8_t> pixels;
    std::vector<int32_t> labels, order, begin;
    ResidentImages resident;

    ImageSetOnDevice(OnDevice& m, std::vector<int32_t> sizes, int64_t pixels_per_image, int low, int high) {
        TestData data(31);
        for (size_t c = 0; c < sizes.size(); ++c) labels.insert(labels.end(), static_cast<size_t>(sizes[c]), static_cast<int32_t>(c));
        for (size_t i = labels.size(); i > 1; --i)
            std::swap(labels[i - 1], labels[static_cast<size_t>(data.index(static_cast<int64_t>(i)))]);
        begin.push_back(0);
        for (size_t c = 0; c < sizes.size(); ++c) {
            for (size_t i = 0; i < labels.size(); ++i)
                if (labels[i] == static_cast<int32_t>(c)) order.push_back(static_cast<int32_t>(i));
            begin.push_back(static_cast<int32_t>(order.size()));
        }
        for (size_t i = 0; i < labels.size() * static_cast<size_t>(pixels_per_image); ++i)
            pixels.push_back(static_cast<uint8_t>(low + data.index(high - low + 1)));
        resident = {.pixels = m.bytes(pixels),
                    .labels = m.integers(labels),
                    .class_order = m.integers(order),
                    .class_begin = m.integers(begin),
                    .count = static_cast<int64_t>(labels.size()),
                    .height = 1,
                    .width = pixels_per_image,
                    .channels = 1,
                    .classes = static_cast<int64_t>(sizes.size()),
                    .largest_class = *std::max_element(sizes.begin(), sizes.end())};
    }
    double byte(int32_t image, int64_t p) const { return pixels[static_cast<size_t>(image * resident.width + p)]; }
};

StartScratch start_scratch(OnDevice& m, int64_t chains, const ResidentImages& images) {
    const Values garbage(static_cast<size_t>(chains), std::nan(""));
    return {m.unwritten(chains * images.largest_class), {m.raw(garbage.data(), garbage.size() * sizeof(double)), DType::f64, chains}};
}

constexpr uint64_t kStartSeed = 99;
constexpr uint32_t kStartIteration = 17;

// mu + sum of (x_i - mu) z_i / sqrt(N) + 0.01 u, in pixels of [-1, 1], from the definition and in double.
double expected_start(const ImageSetOnDevice& set, int32_t label, int64_t chain, int64_t p) {
    const int64_t quads = (set.resident.largest_class + 3) / 4,
                  n = set.begin[static_cast<size_t>(label) + 1] - set.begin[static_cast<size_t>(label)];
    const auto pixel = [&](int64_t i) {
        return 2 * set.byte(set.order[static_cast<size_t>(set.begin[static_cast<size_t>(label)] + i)], p) / 255 - 1;
    };
    double mean = 0, value = 0;
    for (int64_t i = 0; i < n; ++i) mean += pixel(i) / static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) {
        const auto element = static_cast<uint64_t>(chain * quads + i / 4);
        const double z =
            expected_normal(random4(kStartSeed, RandomStream::init_weights, kStartIteration, 0, element), static_cast<int>(i % 4));
        value += (pixel(i) - mean) * z / std::sqrt(static_cast<double>(n));
    }
    const auto element = static_cast<uint64_t>(chain * ((set.resident.width + 3) / 4) + p / 4);
    const double u = expected_normal(random4(kStartSeed, RandomStream::init_pixels, kStartIteration, 0, element), static_cast<int>(p % 4));
    return std::clamp(mean + value + 0.01 * u, -1.0, 1.0);
}

TEST_CASE("start_images_takes_the_buffer_or_draws_from_the_class_s_gaussian") {
    on_every_device([](OnDevice& m) {
        IterationState start;
        start.iteration = kStartIteration, start.step = 4;
        const IterationState* state = m.state(start);
        for (const int64_t pixels : {1, 4, 64, 105, 147})
            for (const int64_t first_chain : {0, 1000}) {
                INFO(pixels << " pixels, first chain " << first_chain);
                const ImageSetOnDevice set(m, {7, 30, 1, 12}, pixels, 0, 255);
                const std::vector<int32_t> index = {2, 0, 1, 2, 2, 0, 1}, fresh = {-1, 1, 3, -1, 0, 2, 1};
                const int64_t chains = static_cast<int64_t>(index.size());
                const Values buffer = TestData(3).uniforms(3 * pixels, -1, 1);
                Values want;
                for (size_t n = 0; n < index.size(); ++n)
                    for (int64_t p = 0; p < pixels; ++p)
                        want.push_back(fresh[n] < 0 ? buffer[static_cast<size_t>(index[n] * pixels + p)]
                                                    : expected_start(set, fresh[n], first_chain + static_cast<int64_t>(n), p));
                const Array x = m.unwritten(chains * pixels), held = m.real(buffer);
                m.ops().start_images(x, held, m.integers(index), m.integers(fresh), start_scratch(m, chains, set.resident), set.resident,
                                     state,
                                     {.first_chain = first_chain,
                                      .weights = RandomStream::init_weights,
                                      .pixels = RandomStream::init_pixels,
                                      .seed = kStartSeed});
                Tolerance tolerance{.absolute = kNormalError + kStart * m.rounding()};
                check_close("x", m.read(x), want, tolerance);
                check_equal("the buffer stays", m.read(held), buffer);
            }
    });
}

TEST_CASE("starts_of_a_product_of_factors_are_those_of_start_images") {
    on_every_device([](OnDevice& m) {
        IterationState start;
        start.iteration = kStartIteration, start.step = 4;
        const IterationState* state = m.state(start);
        constexpr int64_t kRows = 7;
        for (const int64_t pixels : {1, 4, 64, 105, 147})
            for (const int32_t label : {0, 2, 3})
                for (const int64_t block : {4, 16}) {  // pieces of 30 images, and more than 1
                    INFO(pixels << " pixels, class " << label << ", blocks of " << block);
                    const ImageSetOnDevice set(m, {7, 12, 1, 30}, pixels, 0, 255);
                    const auto of_class = static_cast<size_t>(label);
                    const ClassStarts starts = {.begin = set.begin[of_class],
                                                .size = set.begin[of_class + 1] - set.begin[of_class],
                                                .starts = 5,
                                                .draws = {.first_chain = 1000,
                                                          .weights = RandomStream::init_weights,
                                                          .pixels = RandomStream::init_pixels,
                                                          .seed = kStartSeed}};
                    const int64_t columns = pixels + 3;
                    Values product(static_cast<size_t>(kRows * columns));
                    for (int64_t first = 0; first < starts.size; first += block) {
                        const Tensor z = m.unwritten(Extent{block, kRows, 1, 1, kRows}),
                                     x = m.unwritten(Extent{block, columns, 1, 1, columns});
                        m.ops().start_factors(z, x, set.resident, state, starts, first);
                        const Values factors = m.read(z), values = m.read(x);
                        for (int64_t i = 0; i < block; ++i)
                            for (int64_t r = 0; r < kRows; ++r)
                                for (int64_t c = 0; c < columns; ++c)
                                    product[static_cast<size_t>(r * columns + c)] +=
                                        factors[static_cast<size_t>(i * kRows + r)] * values[static_cast<size_t>(i * columns + c)];
                    }
                    check_equal("the counts", Values{product.end()[-3]}, {static_cast<double>(starts.size)});
                    for (int64_t i = 0; i < kRows; ++i)  // what fills the product up to its size adds nothing
                        CHECK(product[static_cast<size_t>((i + 1) * columns - 1)] == 0);
                    for (int64_t c = 0; c < columns; ++c) CHECK(product[static_cast<size_t>(5 * columns + c)] == 0);
                    const Array out = m.unwritten(starts.starts * pixels);
                    m.ops().starts_of_product(out, m.tensor(Extent{kRows, columns, 1, 1, columns}, product), state, starts);
                    Values want;
                    for (int64_t n = 0; n < starts.starts; ++n)
                        for (int64_t p = 0; p < pixels; ++p) want.push_back(expected_start(set, label, 1000 + n, p));
                    check_close("x", m.read(out), want, {.absolute = kNormalError + kStart * m.rounding()});
                }
    });
}

TEST_CASE("start_images_samples_have_the_class_s_mean_and_covariance") {
    constexpr int64_t kChains = 6000, kPixels = 5;
    constexpr double kDeviations = 5;
    on_every_device([](OnDevice& m) {
        // Bytes in the middle: the clamp to [-1, 1] lies 6 deviations off.
        const ImageSetOnDevice set(m, {9, 21}, kPixels, 108, 148);
        const std::vector<int32_t> fresh(kChains, 1);
        const Array x = m.unwritten(kChains * kPixels);
        m.ops().start_images(
            x, {nullptr, m.device().real_type(), 0}, m.integers(fresh), m.integers(fresh), start_scratch(m, kChains, set.resident),
            set.resident, m.state(),
            {.first_chain = 0, .weights = RandomStream::buffer_fill_weights, .pixels = RandomStream::buffer_fill_pixels, .seed = 3});
        const Values got = m.read(x);
        const auto covariance = [&](int64_t count, const std::function<double(int64_t, int64_t)>& value, Values& mean) {
            Values out;
            const double n = static_cast<double>(count);
            mean.assign(kPixels, 0);
            for (int64_t i = 0; i < count; ++i)
                for (int64_t p = 0; p < kPixels; ++p) mean[static_cast<size_t>(p)] += value(i, p) / n;
            for (int64_t p = 0; p < kPixels; ++p)
                for (int64_t q = 0; q < kPixels; ++q) {
                    double sum = 0;
                    for (int64_t i = 0; i < count; ++i)
                        sum += (value(i, p) - mean[static_cast<size_t>(p)]) * (value(i, q) - mean[static_cast<size_t>(q)]) / n;
                    out.push_back(sum);
                }
            return out;
        };
        Values want_mean, got_mean;
        Values want = covariance(
            21, [&](int64_t i, int64_t p) { return 2 * set.byte(set.order[static_cast<size_t>(9 + i)], p) / 255 - 1; }, want_mean);
        for (int64_t p = 0; p < kPixels; ++p) want[static_cast<size_t>(p * kPixels + p)] += 1e-4;
        const Values found = covariance(
            kChains, [&](int64_t i, int64_t p) { return got[static_cast<size_t>(i * kPixels + p)]; }, got_mean);
        Values mean_limits, limits;
        const auto variance = [&](int64_t p) { return want[static_cast<size_t>(p * kPixels + p)]; };
        for (int64_t p = 0; p < kPixels; ++p) {
            mean_limits.push_back(kDeviations * std::sqrt(variance(p) / kChains));
            for (int64_t q = 0; q < kPixels; ++q)  // of a Gaussian's sample covariance
                limits.push_back(
                    kDeviations *
                    std::sqrt((variance(p) * variance(q) + std::pow(want[static_cast<size_t>(p * kPixels + q)], 2)) / kChains));
        }
        check_within("mean", got_mean, want_mean, mean_limits);
        check_within("covariance", found, want, limits);
    });
}

TEST_CASE("start_images_without_weights_is_uniform_in_minus_1_to_1") {
    on_every_device([](OnDevice& m) {
        constexpr int64_t kChains = 40, kPixels = 147;
        std::vector<int32_t> fresh(kChains, 0);
        fresh[3] = -1;
        const ImageSetOnDevice set(m, {3}, kPixels, 0, 255);
        const Values buffer = TestData(4).uniforms(kPixels, -1, 1);
        IterationState start;
        start.iteration = kStartIteration;
        const Array x = m.unwritten(kChains * kPixels);
        m.ops().start_images(
            x, m.real(buffer), m.integers(std::vector<int32_t>(kChains, 0)), m.integers(fresh), {}, set.resident, m.state(start),
            {.first_chain = 8, .weights = RandomStream::init_weights, .pixels = RandomStream::init_pixels, .seed = kStartSeed});
        Values want;
        for (int64_t n = 0; n < kChains; ++n)
            for (int64_t p = 0; p < kPixels; ++p) {
                const auto element = static_cast<uint64_t>((8 + n) * ((kPixels + 3) / 4) + p / 4);
                const Random4 r = random4(kStartSeed, RandomStream::init_pixels, kStartIteration, 0, element);
                want.push_back(n == 3 ? buffer[static_cast<size_t>(p)] : 2 * expected_uniform(r.v[p % 4]) - 1);
            }
        check_close("x", m.read(x), want, m.roundings(1));
    });
}

TEST_CASE("start_images_does_not_depend_on_how_chains_are_split") {
    on_every_device([](OnDevice& m) {
        constexpr int64_t kPixels = 50;
        const ImageSetOnDevice set(m, {6, 11}, kPixels, 0, 255);
        const std::vector<int32_t> fresh = {1, 0, 1, 0};
        const auto run = [&](int64_t first, int64_t count) {
            const Array x = m.unwritten(count * kPixels);
            const Array marks = m.integers({fresh.begin() + first, fresh.begin() + first + count});
            m.ops().start_images(
                x, {nullptr, m.device().real_type(), 0}, marks, marks, start_scratch(m, count, set.resident), set.resident, m.state(),
                {.first_chain = first, .weights = RandomStream::init_weights, .pixels = RandomStream::init_pixels, .seed = 1});
            return m.read(x);
        };
        const Values all = run(0, 4);
        Values parts = run(0, 1);
        for (const double v : run(1, 3)) parts.push_back(v);
        check_equal("1 + 3 chains", parts, all);
    });
}

TEST_CASE("store_chains_writes_at_the_indices_and_of_duplicates_the_last_wins") {
    on_every_device([](OnDevice& m) {
        for (const int64_t pixels : {1, 5, 3072}) {
            const std::vector<int32_t> index = {3, 0, 3, 5, 3, 0};
            TestData data(5);
            const Values buffer = data.normals(6 * pixels), x = data.normals(6 * pixels);
            Values want = buffer;
            for (size_t n = 0; n < index.size(); ++n)  // in order: later ones overwrite
                for (int64_t p = 0; p < pixels; ++p)
                    want[static_cast<size_t>(index[n] * pixels + p)] = x[n * static_cast<size_t>(pixels) + static_cast<size_t>(p)];
            const Array held = m.real(buffer), chains = m.real(x), at = m.integers(index);
            IterationState raised;
            raised.diverged = 1;
            m.ops().store_chains(held, chains, at, m.state(raised));
            check_equal("buffer after divergence", m.read(held), buffer);
            m.ops().store_chains(held, chains, at, m.state());
            check_equal("buffer", m.read(held), want);
            check_equal("the chains stay", m.read(chains), x);
        }
    });
}

TEST_CASE("a_place_in_the_buffer_is_born_when_the_chain_it_keeps_began_afresh") {
    on_every_device([](OnDevice& m) {
        const Array births = m.integers({7, 7, 7, 7, 7, 7});
        // 3: the last of its chains goes on; 0: the last is fresh; 5: fresh; 1, 2, 4: no chain
        const Array index = m.integers({3, 0, 5, 3, 0}), fresh = m.integers({2, -1, 0, -1, 1});
        IterationState state;
        state.iteration = 40;
        state.diverged = 1;
        m.ops().store_births(births, index, fresh, m.state(state));
        CHECK(m.read(births) == Values{7, 7, 7, 7, 7, 7});
        state.diverged = 0;
        m.ops().store_births(births, index, fresh, m.state(state));
        CHECK(m.read(births) == Values{40, 7, 7, 7, 7, 40});
    });
}

TEST_CASE("chains_take_the_places_of_the_oldest_one_behind_the_other_and_keep_when_they_began") {
    on_every_device([](OnDevice& m) {
        const Array births = m.integers({1, 2, 3, 4, 5});
        const Array index = m.integers({4, 0, 2}), fresh = m.integers({-1, 3, -1});
        const Array places = m.integers({-1, -1, -1}), born = m.integers({-1, -1, -1});
        IterationState state;
        state.iteration = 4;  // 12 chains before: behind them place 2
        m.ops().places_of_oldest(places, born, births, index, fresh, m.state(state));
        CHECK(m.read(places) == Values{2, 3, 4});
        CHECK(m.read(born) == Values{5, 4, 3});
        state.diverged = 1;
        m.ops().store_born(births, places, born, m.state(state));
        CHECK(m.read(births) == Values{1, 2, 3, 4, 5});
        state.diverged = 0;
        m.ops().store_born(births, places, born, m.state(state));
        CHECK(m.read(births) == Values{1, 2, 5, 4, 3});
        // More chains than places: the last ones stay.
        const Array few = m.integers({0, 0});
        m.ops().places_of_oldest(places, born, few, m.integers({0, 1, 1}), m.integers({0, 0, 0}), m.state(state));
        CHECK(m.read(places) == Values{0, 1, 0});
    });
}

TEST_CASE("the_summary_of_chains_says_how_far_they_got_and_what_lies_at_the_ends") {
    on_every_device([](OnDevice& m) {
        for (const int64_t pixels : {1, 5, 3072}) {
            constexpr int64_t kImages = 3;
            TestData data(8);
            const Values start = data.normals(kImages * pixels);
            Values end = data.normals(kImages * pixels);
            for (double& value : end) value = std::clamp(value, -1.0, 1.0);
            const Array x = m.real(end), x0 = m.real(start);
            const Values from = m.read(x0), to = m.read(x);  // rounded
            double squares = 0, at_the_ends = 0;
            for (size_t i = 0; i < to.size(); ++i) {
                squares += (to[i] - from[i]) * (to[i] - from[i]);
                at_the_ends += std::abs(to[i]) == 1 ? 1 : 0;
            }
            IterationState* state = m.state();
            m.ops().chain_summary(state, x, x0, kImages, kChain);
            const IterationState got = m.read(state);
            CHECK(got.scalars[kChain.way][0] == doctest::Approx(std::sqrt(squares / kImages)));
            CHECK(got.scalars[kChain.clamped][0] == doctest::Approx(at_the_ends / static_cast<double>(to.size())));
        }
    });
}

TEST_CASE("another_attempt_draws_other_numbers_and_attempt_0_is_the_seed_alone") {
    IterationState first, second;
    first.iteration = second.iteration = 12;
    second.attempt = 1;
    const Random4 plain = random4(5, RandomStream::sgld_noise, 12u, 3, 8), same = random4(5, RandomStream::sgld_noise, first, 3, 8),
                  other = random4(5, RandomStream::sgld_noise, second, 3, 8);
    for (int k = 0; k < 4; ++k) {
        CHECK(plain.v[k] == same.v[k]);
        CHECK(plain.v[k] != other.v[k]);
    }
}

TEST_CASE("store_chains_result_does_not_depend_on_the_order_of_work") {
    const std::vector<int32_t> index = {1, 0, 1, 1, 0};
    const std::vector<double> x = {10, 11, 20, 21, 30, 31, 40, 41, 50, 51};
    const IterationState state;
    std::vector<double> forwards(4, -1), backwards(4, -1);
    for (int64_t item = 0; item < 10; ++item) StoreChains<double>{forwards.data(), x.data(), index.data(), &state, 5, 2}(item);
    for (int64_t item = 10; item-- > 0;) StoreChains<double>{backwards.data(), x.data(), index.data(), &state, 5, 2}(item);
    check_equal("forwards", forwards, {50, 51, 40, 41});
    check_equal("backwards", backwards, {50, 51, 40, 41});
}

}  // namespace
}  // namespace jem
