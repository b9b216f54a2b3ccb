// The predictor: each image's results are its own, whatever batch it falls into and whatever form it comes in; its input gradients are
// those of the LSE.
#include "engine/network/predictor.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "engine/network/parameters.h"
#include "models/wide_resnet.h"
#include "tests/check.h"

namespace jem {
namespace {

constexpr int64_t kSide = 8, kPixels = kSide * kSide, kClasses = 4;

// A small network with a predictor for sets of up to `largest` images.
class PredictorOnDevice {
public:
    PredictorOnDevice(int64_t largest, Predictor::Wants wants, Head head = Head::classes,
                      std::unique_ptr<Device> device = make_reference_device(DType::f64))
        : device_(std::move(device)),
          network_({.depth = 10,
                    .width = 1,
                    .norm = NormKind::batch,
                    .in_channels = 1,
                    .image_size = kSide,
                    .num_classes = kClasses,
                    .energy_head = head == Head::energy}),
          memory_(*device_),
          parameters_(*device_, memory_, network_, {}),
          predictor_(*device_, memory_, network_, {.height = kSide, .width = kSide, .channels = 1},
                     {.largest = largest, .wants = wants, .features = true, .energy_head = head}) {
        network_.build(*device_, memory_, ConvAlgorithm::direct);
        memory_.plan([&] {
            network_.prepare(parameters_.weights(), parameters_.statistics());
            predictor_.plan(view());
        });
        memory_.allocate();
        parameters_.initialise(3);
        network_.prepare(parameters_.weights(), parameters_.statistics());
    }

    NetworkMemory view() {
        return {.weights = parameters_.weights(), .gradient = {}, .statistics = parameters_.statistics(), .state = nullptr};
    }
    Predictor& predictor() { return predictor_; }
    Predictions of_bytes(const std::vector<uint8_t>& bytes) {
        return predictor_.predict(std::ssize(bytes) / kPixels, predictor_.bytes(bytes), view());
    }
    Predictions of_values(const Values& values) {
        return predictor_.predict(std::ssize(values) / kPixels, predictor_.values(values), view());
    }
    Network& network() { return network_; }
    // [N, C]
    Values features(const std::vector<uint8_t>& bytes) {
        Values out;
        predictor_.run(std::ssize(bytes) / kPixels, predictor_.bytes(bytes), view(), [&](const Predictor::Batch& b) {
            const Values some = download_values(*device_, b.features);
            out.insert(out.end(), some.begin(), some.end());
        });
        return out;
    }
    Values weights() { return download_values(*device_, parameters_.weights()); }
    // [N, pixels]
    Values gradients(const Values& values) {
        Values out;
        predictor_.run(std::ssize(values) / kPixels, predictor_.values(values), view(), [&](const Predictor::Batch& b) {
            const Values some = download_values(*device_, b.gradients);
            out.insert(out.end(), some.begin(), some.end());
        });
        return out;
    }

private:
    std::unique_ptr<Device> device_;
    WideResNet network_;
    Memory memory_;
    Parameters parameters_;
    Predictor predictor_;
};

std::vector<uint8_t> random_bytes(int64_t images) {
    TestData data(8);
    std::vector<uint8_t> bytes;
    for (int64_t i = 0; i < images * kPixels; ++i) bytes.push_back(static_cast<uint8_t>(data.index(256)));
    return bytes;
}

template <class T>
std::vector<T> image_of(const std::vector<T>& all, int64_t i, int64_t size) {
    return {all.begin() + i * size, all.begin() + (i + 1) * size};
}

}  // namespace

TEST_CASE("predictions_do_not_depend_on_how_a_set_falls_into_batches") {
    // 203 images: two batches of 100 and one of 3, padded; each image's results are those it has alone.
    constexpr int64_t kCount = 203;
    const std::vector<uint8_t> bytes = random_bytes(kCount);
    PredictorOnDevice on(kCount, Predictor::Wants::logits), alone(1, Predictor::Wants::logits);
    int64_t told = 0;
    const Predictions all = on.predictor().predict(kCount, on.predictor().bytes(bytes), on.view(), [&](int64_t done) { told = done; });
    CHECK(told == kCount);
    CHECK(all.classes == kClasses);
    CHECK(all.count() == kCount);
    REQUIRE(std::ssize(all.lse) == kCount);
    for (const int64_t i : {int64_t{0}, int64_t{99}, int64_t{100}, int64_t{202}}) {
        CAPTURE(i);
        const Predictions one = alone.of_bytes(image_of(bytes, i, kPixels));
        check_close("logits", one.logits, image_of(all.logits, i, kClasses), {1e-13, 1e-13});
        check_close("lse", one.lse, image_of(all.lse, i, 1), {1e-13, 1e-13});
        double sum = 0;
        for (const double logit : one.logits) sum += std::exp(logit);
        CHECK(one.lse.front() == doctest::Approx(std::log(sum)).epsilon(1e-12));
    }
}

TEST_CASE("a_cpu_takes_fewer_images_at_a_time_the_more_activations_a_weight_makes") {
    constexpr int64_t kMost = 100, kWeights = 1'000'000;
    const auto one = make_cpu_device({.threads = 1}), two = make_cpu_device({.threads = 2}), reference = make_reference_device(DType::f32);
    CHECK(reference->best_batch(1, kWeights, kMost) == kMost);
    int64_t before = kMost;
    for (const int64_t activations : {int64_t{1}, kWeights / 5, kWeights / 2, kWeights, 100 * kWeights}) {
        const int64_t batch = two->best_batch(kWeights, activations, kMost);
        CHECK(batch <= before);
        before = batch;
    }
    CHECK(before < kMost);
    CHECK(one->best_batch(kWeights, 100 * kWeights, kMost) < before);  // each thread wants some
    CHECK(one->best_batch(kWeights, 100 * kWeights, 1) == 1);

    constexpr int64_t kCount = 150;  // batches and a rest
    const std::vector<uint8_t> bytes = random_bytes(kCount);
    PredictorOnDevice on(kCount, Predictor::Wants::logits, Head::classes, make_cpu_device({.threads = 2})),
        exact(kCount, Predictor::Wants::logits);
    CHECK(on.predictor().batch() < kCount);
    check_close("logits", on.of_bytes(bytes).logits, exact.of_bytes(bytes).logits, {1e-5, 1e-4});  // f32 against f64
}

TEST_CASE("what_padded_a_batch_before_changes_nothing") {
    const std::vector<uint8_t> bytes = random_bytes(150);
    PredictorOnDevice on(150, Predictor::Wants::logits);
    const Predictions all = on.of_bytes(bytes), once_more = on.of_bytes(bytes);
    check_equal("logits", once_more.logits, all.logits);
    const Predictions few = on.of_bytes(image_of(bytes, 0, 7 * kPixels));
    check_equal("logits of the first seven", few.logits, Values(all.logits.begin(), all.logits.begin() + 7 * kClasses));
}

TEST_CASE("bytes_and_the_values_that_they_stand_for_are_the_same_images") {
    const std::vector<uint8_t> bytes = random_bytes(5);
    Values values;
    for (const uint8_t byte : bytes) values.push_back(byte / 255.0 * 2 - 1);
    PredictorOnDevice on(5, Predictor::Wants::logits);
    check_equal("logits", on.of_values(values).logits, on.of_bytes(bytes).logits);
}

TEST_CASE("features_are_what_the_logits_are_made_of") {
    constexpr int64_t kCount = 103;  // a batch and three of a padded one
    const std::vector<uint8_t> bytes = random_bytes(kCount);
    for (const Head head : {Head::classes, Head::energy}) {
        PredictorOnDevice on(kCount, Predictor::Wants::gradients, head);
        const Values features = on.features(bytes), weights = on.weights(), logits = on.of_bytes(bytes).logits;
        const int64_t channels = std::ssize(features) / kCount;
        const auto offset_of = [&](const std::string& name) {
            for (const TensorInfo& info : on.network().parameters())
                if (info.name == name) return info.offset;
            return int64_t{-1};
        };
        const int64_t w = offset_of("class_output.weight"), b = offset_of("class_output.bias");
        Values want;
        for (int64_t n = 0; n < kCount; ++n)
            for (int64_t c = 0; c < kClasses; ++c) {
                double sum = weights[static_cast<size_t>(b + c)];
                for (int64_t k = 0; k < channels; ++k)
                    sum += features[static_cast<size_t>(n * channels + k)] * weights[static_cast<size_t>(w + c * channels + k)];
                want.push_back(sum);
            }
        check_close("logits", logits, want, {1e-13, 1e-13});
    }
}

TEST_CASE("images_of_another_size_than_the_network_takes_are_refused") {
    PredictorOnDevice on(1, Predictor::Wants::logits);
    ImageSet oblong;
    oblong.name = "made-up";
    oblong.channels = 1;
    oblong.height = 4;
    oblong.width = 16;
    oblong.labels = {0};
    oblong.pixels = random_bytes(1);
    CHECK_THROWS_AS(on.predictor().images_of(oblong), InputError);
    oblong.height = oblong.width = kSide;
    CHECK_NOTHROW(on.predictor().images_of(oblong));
}

TEST_CASE("an_empty_set_has_no_predictions") {
    PredictorOnDevice on(0, Predictor::Wants::logits);
    CHECK(on.of_bytes({}).count() == 0);
}

// Central differences in f64 err by some 1e-15 / h where no kink lies within h.
void check_input_gradients(Head head) {
    constexpr double kStep = 1e-7, kError = 1e-7;
    constexpr int64_t kCount = 3;
    PredictorOnDevice on(kCount, Predictor::Wants::gradients, head);
    TestData data(4);
    const Values x = data.uniforms(kCount * kPixels, -1, 1), g = on.gradients(x);
    REQUIRE(g.size() == x.size());
    for (int64_t n = 0; n < kCount; ++n) {
        CAPTURE(n);
        const Values direction = data.normals(kPixels);
        Values above = x, below = x;
        double want = 0;
        for (int64_t i = 0; i < kPixels; ++i) {
            const auto at = static_cast<size_t>(n * kPixels + i);
            above[at] += kStep * direction[static_cast<size_t>(i)];
            below[at] -= kStep * direction[static_cast<size_t>(i)];
            want += g[at] * direction[static_cast<size_t>(i)];
        }
        const auto lse = [&](const Values& images) { return on.of_values(images).lse[static_cast<size_t>(n)]; };
        CHECK((lse(above) - lse(below)) / (2 * kStep) == doctest::Approx(want).epsilon(kError));
    }
}

TEST_CASE("input_gradients_are_those_of_the_lse_whichever_head_has_the_energy") {
    check_input_gradients(Head::classes);
    check_input_gradients(Head::energy);
}

TEST_CASE("an_energy_of_its_own_leaves_the_logits_as_they_are") {
    const std::vector<uint8_t> bytes = random_bytes(4);
    PredictorOnDevice plain(4, Predictor::Wants::logits), own(4, Predictor::Wants::logits, Head::energy);
    const Predictions p = plain.of_bytes(bytes), q = own.of_bytes(bytes);
    check_equal("logits", q.logits, p.logits);  // the further head is initialised behind the rest
    for (size_t n = 0; n < 4; ++n) CHECK(q.lse[n] != p.lse[n]);
}

}  // namespace jem
