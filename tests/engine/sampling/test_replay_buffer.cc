// The replay buffer and what chains leave alone: what is filled, drawn and stored, where fresh chains start.
#include "engine/sampling/replay_buffer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "engine/training/iteration.h"
#include "models/wide_resnet.h"
#include "tests/check.h"
#include "tests/draws.h"

namespace jem {
namespace {

constexpr int64_t kSide = 8, kPixels = kSide * kSide;
constexpr uint64_t kSeed = 7;

// counts[c] images of class c, in mixed order; pixel(class, position) is their byte.
ImageSet images_of(const std::vector<int64_t>& counts, const std::function<int64_t(int32_t, int64_t)>& pixel) {
    ImageSet set;
    set.name = "mnist";
    set.channels = 1;
    set.height = set.width = kSide;
    set.num_classes = static_cast<int>(counts.size());
    std::vector<int64_t> left = counts;
    for (bool any = true; any;) {
        any = false;
        for (size_t c = 0; c < left.size(); ++c) {
            if (left[c]-- <= 0) continue;
            any = true;
            set.labels.push_back(static_cast<int32_t>(c));
            for (int64_t p = 0; p < kPixels; ++p) set.pixels.push_back(static_cast<uint8_t>(pixel(static_cast<int32_t>(c), p)));
        }
    }
    return set;
}

double value_of(int64_t byte) { return 2.0 * (static_cast<double>(byte) / 255) - 1; }

// A replay buffer over an image set, as the iteration has it.
class BufferOnDevice {
public:
    BufferOnDevice(const ImageSet& set, ReplayBuffer::Options options, std::unique_ptr<Device> device = make_cpu_device({.threads = 1}))
        : device_(std::move(device)),
          memory_(*device_),
          store_(*device_, memory_,
                 {.channels = set.channels,
                  .height = set.height,
                  .width = set.width,
                  .num_classes = set.num_classes,
                  .num_train = 0,
                  .num_test = 0,
                  .flip = false},
                 set.count(), largest_class_of(set)),
          options_(complete(options, set)),
          buffer_(*device_, memory_, options_) {
        state_ = memory_.keep("scalars", "state", sizeof(IterationState));
        chains_ = memory_.keep("samples", "chains", static_cast<size_t>(options_.chains * kPixels) * size_of(device_->real_type()));
        memory_.plan([&] { draw(); });
        memory_.plan([&] { buffer_.plan_fill(store_.view(), state()); });
        memory_.allocate();
        store_.upload(set);
        begin(0);
    }

    ReplayBuffer& buffer() { return buffer_; }
    Device& device() { return *device_; }
    IterationState* state() { return reinterpret_cast<IterationState*>(memory_.at(state_)); }
    Array chains() { return {memory_.at(chains_), device_->real_type(), options_.chains * kPixels}; }
    void begin(int64_t iteration) { device_->ops().begin_iteration(state(), static_cast<uint32_t>(iteration), 0, 1, 1); }
    void draw() { buffer_.draw(chains(), store_.view(), state()); }
    void store() { buffer_.store(chains(), state()); }
    std::vector<int64_t> fill() {
        std::vector<int64_t> told;
        buffer_.fill(store_.view(), state(), [&](int64_t done) { told.push_back(done); });
        return told;
    }
    Values values(const Array& a) { return download_values(*device_, a); }
    std::vector<int32_t> integers(const Array& a) {
        std::vector<int32_t> out(static_cast<size_t>(a.count));
        device_->download(out.data(), a.data, a.bytes());
        return out;
    }

private:
    // The largest class and, for one Gaussian, the one class of all images.
    ReplayBuffer::Options complete(ReplayBuffer::Options o, const ImageSet& set) {
        if (is_of_one_class(o.form)) store_.merge_classes();
        o.pixels = kPixels;
        o.classes = is_of_one_class(o.form) ? 1 : set.num_classes;
        o.largest_class = is_of_gaussians(o.form) ? store_.largest_class() : 0;
        o.seed = kSeed;
        return o;
    }

    std::unique_ptr<Device> device_;
    Memory memory_;
    ImageStore store_;
    ReplayBuffer::Options options_;
    ReplayBuffer buffer_;
    Slot state_, chains_;
};

// What the buffer starts with, from the definition and in double: mu + (X - mu)^T z / sqrt(N) + 0.01 u, class by class.
Values expected_fill(const ImageSet& set, int64_t size, StartForm form) {
    std::vector<std::vector<size_t>> classes;  // that have images
    for (int c = 0; c < (form == StartForm::gaussian ? 1 : set.num_classes); ++c) {
        std::vector<size_t> own;
        for (size_t i = 0; i < set.labels.size(); ++i)
            if (form == StartForm::gaussian || set.labels[i] == c) own.push_back(i);
        if (!own.empty()) classes.push_back(own);
    }
    size_t largest = 0;
    for (const auto& own : classes) largest = std::max(largest, own.size());
    Values out;
    int64_t start = 0;
    for (size_t c = 0; c < classes.size(); ++c) {
        const std::vector<size_t>& own = classes[c];
        const auto n = static_cast<double>(own.size());
        Values pixels, mean(kPixels);
        for (const size_t i : own)
            for (size_t p = 0; p < kPixels; ++p) {
                pixels.push_back(value_of(set.pixels[i * kPixels + p]));
                mean[p] += pixels.back() / n;
            }
        const int64_t each = size / std::ssize(classes) + (static_cast<int64_t>(c) < size % std::ssize(classes) ? 1 : 0);
        for (const int64_t end = start + each; start < end; ++start) {
            Values x = mean;
            for (size_t i = 0; i < own.size(); ++i) {
                const uint64_t element = static_cast<uint64_t>(start) * ((largest + 3) / 4) + i / 4;
                const double z = expected_normal(random4(kSeed, RandomStream::buffer_fill_weights, 0, 0, element), static_cast<int>(i % 4));
                for (size_t p = 0; p < kPixels; ++p) x[p] += (pixels[i * kPixels + p] - mean[p]) * z / std::sqrt(n);
            }
            for (size_t p = 0; p < kPixels; ++p) {
                const uint64_t element = static_cast<uint64_t>(start) * ((kPixels + 3) / 4) + p / 4;
                const double u = expected_normal(random4(kSeed, RandomStream::buffer_fill_pixels, 0, 0, element), static_cast<int>(p % 4));
                out.push_back(std::clamp(x[p] + 0.01 * u, -1.0, 1.0));
            }
        }
    }
    return out;
}

struct Moments {
    double mean = 0, variance = 0;
};
Moments moments(const Values& v) {
    Moments m;
    for (const double x : v) m.mean += x;
    m.mean /= static_cast<double>(v.size());
    for (const double x : v) m.variance += (x - m.mean) * (x - m.mean);
    m.variance /= static_cast<double>(v.size());
    return m;
}

}  // namespace

TEST_CASE("chains_that_start_from_images_begin_as_one_of_the_set_and_the_others_go_on") {
    TestData data(5);
    const ImageSet set = images_of({21}, [&](int32_t, int64_t) { return data.index(256); });
    const auto is_of_set = [&](const Values& x, int64_t number) {
        for (int64_t i = 0; i < set.count(); ++i) {
            bool same = true;
            for (size_t p = 0; same && p < kPixels; ++p)
                same = std::abs(x[static_cast<size_t>(number) * kPixels + p] - value_of(set.pixels[static_cast<size_t>(i) * kPixels + p])) <
                       1e-6;
            if (same) return i;
        }
        return int64_t{-1};
    };
    BufferOnDevice b(set, {.size = 30, .chains = 12, .reinit_freq = 0.5, .form = StartForm::images});
    CHECK(b.fill() == std::vector<int64_t>{12, 24, 30});
    const Values filled = b.values(b.buffer().images());
    std::set<int64_t> begun;
    for (int64_t i = 0; i < 30; ++i) begun.insert(is_of_set(filled, i));
    CHECK(begun.count(-1) == 0);
    CHECK(begun.size() > 10);                                     // of 21, drawn 30 times: 16 on average
    const Values marks(static_cast<size_t>(30 * kPixels), 0.25);  // which no byte is
    upload_values(b.device(), b.buffer().images(), marks);
    int fresh = 0, continued = 0;
    for (int64_t iteration = 1; iteration < 6; ++iteration) {
        b.begin(iteration);
        b.draw();
        const Values x = b.values(b.chains());
        const std::vector<int32_t> is_fresh = b.integers(b.buffer().fresh());
        for (int64_t n = 0; n < 12; ++n) {
            if (is_fresh[static_cast<size_t>(n)] < 0) {
                ++continued;
                CHECK(x[static_cast<size_t>(n) * kPixels] == 0.25);
            } else {
                ++fresh;
                CHECK(is_of_set(x, n) >= 0);
            }
        }
    }
    CHECK(fresh > 10);
    CHECK(continued > 10);
}

TEST_CASE("no_sgld_steps_leave_the_samples_as_they_are") {
    for (const int64_t steps : {0, 1}) {
        CAPTURE(steps);
        const auto device = make_reference_device(DType::f64);
        Settings s;
        s.depth = 10;
        s.width = 1;
        s.in_channels = 1;
        s.image_size = kSide;
        s.num_classes = 3;
        s.sgld_steps = steps;
        s.sgld_step_size = 100;
        WideResNet network({.depth = 10, .width = 1, .norm = NormKind::batch, .in_channels = 1, .image_size = kSide, .num_classes = 3});
        Memory memory(*device);
        TrainingIteration iteration(*device, memory, network, s,
                                    TrainingIteration::GivenBatches{.positive = 2, .negative = 3, .labelled = 2, .noise = false});
        iteration.plan();
        memory.allocate();
        iteration.record();
        iteration.parameters().initialise(1);
        iteration.prepare_weights();
        const Values x = TestData(3).uniforms(3 * kPixels, -0.9, 0.9);
        upload_values(*device, iteration.chain().images(), x);
        iteration.begin(0, 0.1, 0);
        iteration.run_all();
        const Values after = download_values(*device, iteration.chain().images());
        if (steps == 0)
            check_equal("samples", after, x);
        else
            CHECK(after != x);
        CHECK(iteration.repeats("sample") == steps);
        IterationState state;
        iteration.read_state(state);
        CHECK(state.diverged == 0);
        CHECK(std::isfinite(iteration.scalars().value(state, "f_neg")));
        CHECK(state.step == steps);
    }
}

TEST_CASE("buffer_is_filled_class_by_class_and_the_first_classes_get_one_more") {
    // All images of a class are the same: its Gaussian has no spread but the 0.01 that is added.
    const auto set = images_of({3, 5, 2, 4, 3}, [](int32_t c, int64_t) { return 25 + 50 * c; });
    for (const int64_t chains : {1, 4, 13, 50}) {  // how many are drawn in an iteration must not matter
        CAPTURE(chains);
        BufferOnDevice on(set, {.size = 13, .chains = chains, .form = StartForm::informative});
        const std::vector<int64_t> told = on.fill();
        CHECK(told == std::vector<int64_t>{3, 6, 9, 11, 13});  // class by class
        const Values images = on.values(on.buffer().images());
        REQUIRE(images.size() == 13 * kPixels);
        const std::vector<int32_t> classes = {0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4};
        double largest = 0;
        for (size_t i = 0; i < 13; ++i)
            for (size_t p = 0; p < kPixels; ++p)
                largest = std::max(largest, std::fabs(images[i * kPixels + p] - value_of(25 + 50 * classes[i])));
        CHECK(largest < 0.06);  // six deviations
        CHECK(largest > 0.02);
        BufferOnDevice at_once(set, {.size = 13, .chains = 13, .form = StartForm::informative});
        at_once.fill();
        check_equal("images", images, at_once.values(at_once.buffer().images()));
    }
}

TEST_CASE("the_fill_is_what_the_definition_says_whatever_pieces_its_product_is_taken_in") {
    // In f32 a sum of up to 1006 products of standard normals and values up to 1 walks up to 100 and rounds as often as it has terms, up
    // and down; then it is divided by the root of the terms. What the draws err by is multiplied by the spread of the images.
    constexpr double kSumError = 100 * 0x1p-24 * 4, kDrawError = 4 * kNormalError;
    TestData data(5);
    const auto set = images_of({300, 0, 5, 1, 700}, [&](int32_t c, int64_t) { return 20 * c + data.index(150); });
    for (const StartForm form : {StartForm::informative, StartForm::gaussian})
        for (const int64_t size : {3, 64, 1101}) {  // fewer than classes; a piece a class; more, which do not divide
            CAPTURE(size);
            CAPTURE(static_cast<int>(form));
            const Values want = expected_fill(set, size, form);
            for (const bool f64 : {false, true}) {
                BufferOnDevice on(set, {.size = size, .chains = 6, .form = form},
                                  f64 ? make_reference_device(DType::f64) : make_cpu_device({.threads = 2}));
                const std::vector<int64_t> told = on.fill();
                CHECK(std::is_sorted(told.begin(), told.end()));
                CHECK(told.back() == size);
                if (size == 1101) CHECK(told.size() > (form == StartForm::gaussian ? 2 : 4));
                check_close("buffer", on.values(on.buffer().images()), want, {kDrawError + (f64 ? 0 : kSumError), 0});
            }
        }
}

TEST_CASE("no_chain_starts_from_a_class_without_images") {
    const auto set = images_of({0, 3, 0, 2, 0}, [](int32_t c, int64_t) { return 50 * c; });
    BufferOnDevice on(set, {.size = 8, .chains = 8, .reinit_freq = 1, .form = StartForm::informative});
    const auto classes_in = [](const Values& images) {  // by their mean; a start without images would be black
        std::vector<int64_t> found;
        for (size_t i = 0; i < images.size(); i += kPixels) {
            const auto at = images.begin() + static_cast<int64_t>(i);
            const double byte = (moments(Values(at, at + kPixels)).mean + 1) / 2 * 255;
            found.push_back(std::lround(byte / 50));
            CHECK(std::fabs(byte - 50 * static_cast<double>(found.back())) < 2);
        }
        return found;
    };
    on.fill();
    CHECK(classes_in(on.values(on.buffer().images())) == std::vector<int64_t>{1, 1, 1, 1, 3, 3, 3, 3});
    on.draw();
    const std::vector<int64_t> drawn = classes_in(on.values(on.chains()));
    CHECK(std::all_of(drawn.begin(), drawn.end(), [](int64_t c) { return c == 1 || c == 3; }));
}

TEST_CASE("a_buffer_smaller_than_the_number_of_classes_holds_the_first_ones") {
    const auto set = images_of({3, 3, 3}, [](int32_t c, int64_t) { return 20 + 100 * c; });
    BufferOnDevice on(set, {.size = 2, .chains = 5, .form = StartForm::informative});
    CHECK(on.fill() == std::vector<int64_t>{1, 2});
    const Values images = on.values(on.buffer().images());
    CHECK(moments(Values(images.begin(), images.begin() + kPixels)).mean == doctest::Approx(value_of(20)).epsilon(0.02));
    CHECK(moments(Values(images.begin() + kPixels, images.end())).mean == doctest::Approx(value_of(120)).epsilon(0.2));
}

TEST_CASE("informative_starts_have_their_class_mean_and_covariance") {
    // Class 1: images v * pattern with v = -1 or 1, so that the covariance has rank one: x = z * pattern.
    ImageSet set = images_of({4, 6}, [](int32_t, int64_t) { return 128; });
    std::map<int32_t, int> seen;
    for (size_t i = 0; i < set.labels.size(); ++i) {
        const int nth = seen[set.labels[i]]++;
        if (set.labels[i] != 1) continue;
        for (int64_t p = 0; p < kPixels; ++p) {
            const int64_t swing = (p < kPixels / 2 ? 20 : -30) * (nth % 2 == 0 ? 1 : -1);
            set.pixels[i * kPixels + static_cast<size_t>(p)] = static_cast<uint8_t>(128 + swing);
        }
    }
    constexpr int64_t kChains = 4000;
    BufferOnDevice on(set, {.size = 2 * kChains, .chains = kChains, .form = StartForm::informative});
    on.fill();
    const Values images = on.values(on.buffer().images());
    Values first, last, product;
    for (size_t n = kChains; n < 2 * kChains; ++n) {  // the second half is class 1's
        first.push_back(images[n * kPixels] - value_of(128));
        last.push_back(images[n * kPixels + kPixels - 1] - value_of(128));
        product.push_back(first.back() * last.back());
    }
    const double a = 2.0 * 20 / 255, b = 2.0 * 30 / 255;
    // Standard errors of 4000 draws: 1.6 % of a deviation in a mean, 2.2 % of a variance; five of them.
    CHECK(std::fabs(moments(first).mean) < 0.08 * a);
    CHECK(moments(first).variance == doctest::Approx(a * a + 1e-4).epsilon(0.11));
    CHECK(moments(last).variance == doctest::Approx(b * b + 1e-4).epsilon(0.11));
    CHECK(moments(product).mean == doctest::Approx(-a * b).epsilon(0.11));
}

TEST_CASE("uniform_starts_cover_the_whole_range_and_no_more") {
    const auto set = images_of({3, 3}, [](int32_t, int64_t) { return 255; });  // the images do not matter
    BufferOnDevice on(set, {.size = 300, .chains = 7, .form = StartForm::uniform});
    CHECK(on.fill().size() == 43);  // as many at once as are drawn in an iteration
    const Values x = on.values(on.buffer().images());
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    CHECK(*low >= -1);
    CHECK(*high <= 1);
    CHECK(*low < -0.999);
    CHECK(*high > 0.999);
    const double n = static_cast<double>(x.size());
    CHECK(std::fabs(moments(x).mean) < 5 * std::sqrt(1.0 / 3 / n));
    CHECK(std::fabs(moments(x).variance - 1.0 / 3) < 5 * std::sqrt(4.0 / 45 / n));
}

TEST_CASE("gaussian_starts_have_the_mean_and_covariance_of_all_images") {
    // Two classes of constant images, 64 and 192 (twice as many): one Gaussian of their mixture's moments, the same for every pixel.
    const auto set = images_of({10, 20}, [](int32_t c, int64_t) { return c == 0 ? 64 : 192; });
    constexpr int64_t kImages = 3000;
    BufferOnDevice on(set, {.size = kImages, .chains = 64, .form = StartForm::gaussian});
    on.fill();
    const Values images = on.values(on.buffer().images());
    const double mean = (value_of(64) + 2 * value_of(192)) / 3, spread = value_of(192) - value_of(64);
    const double variance = spread * spread * 2 / 9;  // deviation 0.47: clamps at -1 and 1 are 2.6 and 1.6 deviations off
    Values unclamped;
    for (int64_t i = 0; i < kImages; ++i) {
        Values image(images.begin() + i * kPixels, images.begin() + (i + 1) * kPixels);
        for (const double v : image) CHECK_MESSAGE((v >= -1 && v <= 1), "image ", i, " holds ", v);
        // Within an image all pixels move together, up to the 0.01.
        const auto [low, high] = std::minmax_element(image.begin(), image.end());
        CHECK(*high - *low < 0.12);
        unclamped.push_back(moments(image).mean);
    }
    // The median and the share below one deviation under the mean do not see the clamps.
    std::sort(unclamped.begin(), unclamped.end());
    const double error = std::sqrt(variance) * 1.2533 / std::sqrt(static_cast<double>(kImages));
    CHECK(std::fabs(unclamped[kImages / 2] - mean) < 5 * error);
    const auto below = std::lower_bound(unclamped.begin(), unclamped.end(), mean - std::sqrt(variance)) - unclamped.begin();
    CHECK(std::fabs(static_cast<double>(below) / kImages - 0.158655) < 5 * std::sqrt(0.1587 * 0.8413 / kImages));
}

TEST_CASE("chains_continue_the_buffers_images_and_are_stored_where_they_were_drawn") {
    const auto set = images_of({3, 3}, [](int32_t c, int64_t p) { return 40 + 100 * c + p % 7; });
    BufferOnDevice on(set, {.size = 9, .chains = 6, .reinit_freq = 0, .form = StartForm::informative});
    on.fill();
    bool duplicate_seen = false;
    for (int64_t iteration = 0; iteration < 20; ++iteration) {
        on.begin(iteration);
        const Values before = on.values(on.buffer().images());
        on.draw();
        const std::vector<int32_t> index = on.integers(on.buffer().index());
        for (const int32_t fresh : on.integers(on.buffer().fresh())) CHECK(fresh == -1);
        Values expected;
        for (const int32_t i : index) {
            REQUIRE(i >= 0);
            REQUIRE(i < 9);
            expected.insert(expected.end(), before.begin() + i * kPixels, before.begin() + (i + 1) * kPixels);
        }
        check_equal("chains", on.values(on.chains()), expected);

        // Each chain gets a value of its own; of a duplicate index the last chain's is kept, whatever else stays as it was.
        Values moved;
        for (size_t n = 0; n < index.size(); ++n) moved.insert(moved.end(), kPixels, 0.125 * static_cast<double>(n) - 0.5);
        upload_values(on.device(), on.chains(), moved);
        on.store();
        Values wanted = before;
        for (size_t n = 0; n < index.size(); ++n) {
            std::fill_n(wanted.begin() + index[n] * kPixels, kPixels, moved[n * kPixels]);
            duplicate_seen = duplicate_seen || std::count(index.begin(), index.end(), index[n]) > 1;
        }
        check_equal("buffer", on.values(on.buffer().images()), wanted);
    }
    CHECK(duplicate_seen);
}

TEST_CASE("in_a_fifo_buffer_chains_take_the_places_of_the_oldest_images") {
    const auto set = images_of({3, 3}, [](int32_t c, int64_t p) { return 40 + 100 * c + p % 7; });
    constexpr int64_t kSize = 10, kChains = 4;
    BufferOnDevice on(set,
                      {.size = kSize, .chains = kChains, .order = BufferOrder::fifo, .reinit_freq = 0.5, .form = StartForm::informative});
    on.fill();
    for (int64_t iteration = 0; iteration < 8; ++iteration) {
        CAPTURE(iteration);
        on.begin(iteration);
        const Values before = on.values(on.buffer().images());
        const std::vector<int32_t> births = on.integers(on.buffer().births());
        on.draw();
        const std::vector<int32_t> index = on.integers(on.buffer().index()), fresh = on.integers(on.buffer().fresh());
        Values moved, wanted = before;
        std::vector<int32_t> born = births;
        for (int64_t n = 0; n < kChains; ++n) {
            const double value = 0.125 * static_cast<double>(n) - 0.5;
            moved.insert(moved.end(), kPixels, value);
            const int64_t place = (iteration * kChains + n) % kSize;
            std::fill_n(wanted.begin() + place * kPixels, kPixels, value);
            const auto from = static_cast<size_t>(index[static_cast<size_t>(n)]);
            born[static_cast<size_t>(place)] = fresh[static_cast<size_t>(n)] < 0 ? births[from] : static_cast<int32_t>(iteration);
        }
        upload_values(on.device(), on.chains(), moved);
        on.store();
        check_equal("buffer", on.values(on.buffer().images()), wanted);
        CHECK(on.integers(on.buffer().births()) == born);
    }
}

TEST_CASE("indices_are_uniform_and_the_share_of_fresh_chains_is_gamma") {
    const auto set = images_of({2, 2, 2}, [](int32_t, int64_t) { return 100; });
    BufferOnDevice on(set, {.size = 10, .chains = 50, .reinit_freq = 0.05, .form = StartForm::informative});
    on.fill();
    constexpr int kIterations = 400;
    std::map<int32_t, int> index, fresh;
    for (int64_t iteration = 0; iteration < kIterations; ++iteration) {
        on.begin(iteration);
        on.draw();
        for (const int32_t i : on.integers(on.buffer().index())) ++index[i];
        for (const int32_t c : on.integers(on.buffer().fresh())) ++fresh[c];
    }
    const double n = 50.0 * kIterations;
    REQUIRE(index.size() == 10);
    for (const auto& [i, count] : index) CHECK(std::fabs(count - n / 10) < 5 * std::sqrt(n * 0.09));
    REQUIRE(fresh.size() == 4);  // -1 and three classes
    CHECK(std::fabs(n - fresh[-1] - 0.05 * n) < 5 * std::sqrt(n * 0.05 * 0.95));
    for (const int32_t c : {0, 1, 2}) CHECK(std::fabs(fresh[c] - 0.05 * n / 3) < 5 * std::sqrt(n * 0.05 / 3));
}

TEST_CASE("fresh_chains_are_stored_in_place_of_the_image_that_was_drawn") {
    const auto set = images_of({2, 2}, [](int32_t, int64_t) { return 200; });
    BufferOnDevice on(set, {.size = 4, .chains = 8, .reinit_freq = 1, .form = StartForm::uniform});
    on.fill();
    const Values before = on.values(on.buffer().images());
    on.begin(1);
    on.draw();
    for (const int32_t fresh : on.integers(on.buffer().fresh())) CHECK(fresh >= 0);
    const Values chains = on.values(on.chains());
    CHECK(chains != before);
    on.store();
    const Values after = on.values(on.buffer().images());
    const std::vector<int32_t> index = on.integers(on.buffer().index());
    for (size_t n = 0; n < index.size(); ++n) {
        if (std::find(index.begin() + static_cast<std::ptrdiff_t>(n) + 1, index.end(), index[n]) != index.end()) continue;
        check_equal("stored chain", Values(after.begin() + index[n] * kPixels, after.begin() + (index[n] + 1) * kPixels),
                    Values(chains.begin() + static_cast<std::ptrdiff_t>(n) * kPixels,
                           chains.begin() + static_cast<std::ptrdiff_t>(n + 1) * kPixels));
    }
}

TEST_CASE("a_diverged_state_keeps_the_buffer") {
    const auto set = images_of({2, 2}, [](int32_t, int64_t) { return 200; });
    BufferOnDevice on(set, {.size = 5, .chains = 3, .reinit_freq = 0.5, .form = StartForm::uniform});
    on.fill();
    const Values before = on.values(on.buffer().images());
    on.draw();
    IterationState diverged;
    diverged.diverged = 1;
    on.device().upload(on.state(), &diverged, sizeof diverged);
    upload_values(on.device(), on.chains(), Values(3 * kPixels, std::nan("")));
    on.store();
    check_equal("buffer", on.values(on.buffer().images()), before);
}

TEST_CASE("draws_are_the_same_on_the_cpu_and_the_reference") {
    const auto set = images_of({5, 3, 4}, [](int32_t c, int64_t p) { return 30 + 60 * c + p; });
    for (const StartForm form : {StartForm::informative, StartForm::uniform, StartForm::gaussian}) {
        const ReplayBuffer::Options options = {.size = 11, .chains = 4, .reinit_freq = 0.5, .form = form};
        BufferOnDevice cpu(set, options, make_cpu_device({.threads = 2})), reference(set, options, make_reference_device(DType::f64));
        for (BufferOnDevice* on : {&cpu, &reference}) {
            on->fill();
            on->begin(3);
            on->draw();
        }
        CHECK(cpu.integers(cpu.buffer().index()) == reference.integers(reference.buffer().index()));
        CHECK(cpu.integers(cpu.buffer().fresh()) == reference.integers(reference.buffer().fresh()));
        check_close("buffer", cpu.values(cpu.buffer().images()), reference.values(reference.buffer().images()), {1e-5, 0});
        check_close("chains", cpu.values(cpu.chains()), reference.values(reference.chains()), {1e-5, 0});
    }
}

}  // namespace jem
