// FID's Inception against pytorch-fid's module, layer by layer, with weights by a formula (tests/golden/make_inception.py).
#include "models/inception.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "engine/network/predictor.h"
#include "tests/check.h"
#include "tests/engine/training/golden.h"
#include "tests/formula.h"
#include "tests/on_device.h"
#include "tests/temp_folder.h"

namespace jem {
namespace {

constexpr uint64_t kSeed = 1;
constexpr int64_t kImages = 2, kHeight = 32, kWidth = 40;

// A build that runs some ten times as slowly as a release.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(NDEBUG)
constexpr bool kSlowBuild = true;
#else
constexpr bool kSlowBuild = false;
#endif

SafetensorsFile make_weights(const Network& network) {
    SafetensorsFile file;
    const auto add = [&](const TensorInfo& info, auto formula) {
        file.tensors[info.name] = formula_tensor(kSeed, info.name, info.shape, formula);
    };
    for (const TensorInfo& info : network.parameters()) {
        const double variance = info.name.starts_with("fc.") ? 1 : 6;
        const double bound = info.fan_in > 0 ? std::sqrt(variance / static_cast<double>(info.fan_in)) : 0;
        add(info, [&](double u) {
            if (info.fan_in > 0) return (2 * u - 1) * bound;
            return info.initial == 1 ? 0.5 + u : 0.3 * (2 * u - 1);  // gamma, beta
        });
    }
    for (const TensorInfo& info : network.statistics())
        add(info, [&](double u) { return info.initial == 1 ? 0.5 + u : 0.2 * (2 * u - 1); });
    return file;
}

// Of all 24 million values, made once.
const SafetensorsFile& weights_by_formula() {
    static const SafetensorsFile file = make_weights(Inception({.logits_bias = LinearBias::own}));
    return file;
}

// [N, H, W, C]
Values golden_images() {
    const Uniforms u(kSeed, "images");
    Values x(static_cast<size_t>(kImages * kHeight * kWidth * 3));
    for (int64_t i = 0; i < std::ssize(x); ++i) {
        const int64_t c = i % 3, pixel = i / 3 % (kHeight * kWidth), n = i / (3 * kHeight * kWidth);
        x[static_cast<size_t>(i)] = static_cast<float>(2 * u(static_cast<uint64_t>((n * 3 + c) * kHeight * kWidth + pixel)) - 1);
    }
    return x;
}

class InceptionOnDevice {
public:
    InceptionOnDevice(std::unique_ptr<Device> device, const InceptionSettings& settings, int64_t batch = kImages)
        : device_(std::move(device)),
          network_(settings),
          memory_(*device_),
          parameters_(*device_, memory_, network_, {}),
          pass_(network_.add_pass({"images", batch, NormMode::running, Gradients::none})),
          images_{nullptr, device_->real_type(), batch, settings.in_channels, settings.height, settings.width, settings.in_channels},
          slot_(memory_.keep("images", "images", images_.bytes())) {
        network_.build(*device_, memory_, ConvAlgorithm::direct);
        memory_.plan([&] {
            network_.prepare(parameters_.weights(), parameters_.statistics());
            forward();
            for (const std::string& name : network_.blocks()) network_.block(pass_, name);
            network_.output(pass_, Output::features), network_.logits(pass_);
        });
        memory_.allocate();
        images_.data = memory_.at(slot_);
        parameters_.load(weights_by_formula(), "formula", {});
        network_.prepare(parameters_.weights(), parameters_.statistics());
    }

    void run(const Values& images) {
        upload_values(*device_, {images_.data, images_.type, images_.count()}, images);
        forward();
    }
    Inception& network() { return network_; }
    // In the order [N, C, H, W].
    Values block(const std::string& name) { return read(network_.block(pass_, name)); }
    Values features() { return read(network_.output(pass_, Output::features)); }
    Values logits() { return read(network_.logits(pass_)); }

private:
    void forward() {
        network_.forward(
            pass_, {.weights = parameters_.weights(), .gradient = {}, .statistics = parameters_.statistics(), .state = nullptr}, images_);
    }
    Values read(const Tensor& t) {
        OnDevice m(*device_);
        if (t.type == device_->real_type()) return m.read(t);
        const Array wide = m.unwritten(t.count());
        m.ops().convert(wide, {t.data, t.type, t.count()});
        return m.read(Tensor{wide.data, wide.type, t.n, t.c, t.h, t.w, t.block});
    }

    std::unique_ptr<Device> device_;
    Inception network_;
    Memory memory_;
    Parameters parameters_;
    int pass_;
    Tensor images_;
    Slot slot_;
};

InceptionSettings settings_of(int64_t size, LinearBias bias = LinearBias::none) {
    return {.height = kHeight, .width = kWidth, .logits_bias = bias, .size = size};
}

// Every layer, of what PyTorch made in f64: norm, a dot product, and values.
void check_golden(const std::string& what, std::unique_ptr<Device> device, int64_t size, LinearBias bias, double tolerance) {
    INFO(what << ", " << size << " pixels");
    InceptionOnDevice on(std::move(device), settings_of(size, bias));
    on.run(golden_images());
    const SafetensorsFile golden =
        SafetensorsFile::read(std::string(JEM_GOLDEN_DIR) + "/inception/" + std::to_string(size) + ".safetensors");
    const auto check = [&](const std::string& name, const Values& got) {
        const Values want = golden.doubles(name), probe = probe_of(got);
        REQUIRE(want.size() == probe.size());
        const double norm = want[0], scale = norm / std::sqrt(static_cast<double>(got.size()));
        Values limits(want.size(), tolerance * scale);
        limits[0] = limits[1] = tolerance * norm;  // each the sum of errors of any sign
        check_within(name, probe, want, limits);
    };
    for (const std::string& name : on.network().blocks()) check(name, on.block(name));
    check("features", on.features());
    check(bias == LinearBias::own ? "logits" : "logits_without_bias", on.logits());
}

// Sums of up to 3456 products, 20 layers deep.
constexpr double kF32 = 2e-5, kF64 = 1e-11;

}  // namespace

TEST_CASE("every_layer_of_inception_is_that_of_pytorch_fid_at_75_pixels") {
    check_golden("cpu", make_cpu_device({.threads = 2}), 75, LinearBias::own, kF32);
    if (!kSlowBuild) check_golden("reference", make_reference_device(DType::f64), 75, LinearBias::none, kF64);
#ifdef JEM_HAS_CUDA
    std::string why;
    if (!visible_gpus(why).empty()) check_golden("cuda", make_test_gpu(), 75, LinearBias::none, kF32);
#endif
}

TEST_CASE("every_layer_of_inception_is_that_of_pytorch_fid_at_299_pixels") {
    if (kSlowBuild) {
        std::printf("SKIPPED: Inception at 299 pixels: too slow without optimisation or with sanitizers; 75 pixels are tested\n");
        return;
    }
    check_golden("cpu", make_cpu_device({.threads = 2}), 299, LinearBias::none, kF32);
#ifdef JEM_HAS_CUDA
    std::string why;
    if (!visible_gpus(why).empty()) check_golden("cuda", make_test_gpu(), 299, LinearBias::none, kF32);
#endif
}

TEST_CASE("images_as_tensorflow_1_saw_them_are_scaled_by_the_authors_formula") {
    constexpr int64_t kSize = 75;
    Values x = TestData(2).uniforms(kSize * kSize, -1, 1), scaled;
    for (const double v : x) scaled.push_back((255 * (v + 1) / (2 + 1e-5) - 128) / 128);
    InceptionSettings settings{.height = kSize, .width = kSize, .in_channels = 1, .size = kSize};  // nothing to resize
    InceptionOnDevice plain(make_cpu_device({.threads = 2}), settings, 1);
    settings.input = InceptionInput::tf1;
    InceptionOnDevice tf1(make_cpu_device({.threads = 2}), settings, 1);
    plain.run(scaled);
    tf1.run(x);
    const Values want = plain.features(), got = tf1.features();
    Values error;
    for (size_t i = 0; i < want.size(); ++i) error.push_back(got[i] - want[i]);
    CHECK(rms(error) < kF32 * rms(want));
    plain.run(x);
    CHECK(plain.features() != want);  // so that the scale shows
}

TEST_CASE("features_of_inception_in_bf16_are_within_some_per_cent_of_f32_s") {
    if (!cpu_has_bf16()) {
        std::printf("SKIPPED: Inception in bf16: this CPU has neither AVX512_BF16 nor AMX\n");
        return;
    }
    InceptionOnDevice f32(make_cpu_device({.threads = 2}), settings_of(75)),
        bf16(make_cpu_device({.threads = 2, .activation = DType::bf16}), settings_of(75));
    f32.run(golden_images());
    bf16.run(golden_images());
    const Values want = f32.features(), got = bf16.features();
    Values error;
    for (size_t i = 0; i < want.size(); ++i) error.push_back(got[i] - want[i]);
    constexpr double kError = 0.02;  // 0.0097 were measured
    CHECK(rms(error) < kError * rms(want));
    CHECK(rms(error) > 0);
}

TEST_CASE("a_predictor_hands_out_inception_s_features_of_sets_larger_than_a_batch") {
    const auto device = make_cpu_device({.threads = 2});
    Inception network(settings_of(75));
    Memory memory(*device);
    Parameters parameters(*device, memory, network, {});
    Predictor predictor(*device, memory, network, {.height = kHeight, .width = kWidth, .channels = 3},
                        {.largest = kImages, .features = true});
    network.build(*device, memory, ConvAlgorithm::automatic);
    const auto view = [&] {
        return NetworkMemory{.weights = parameters.weights(), .gradient = {}, .statistics = parameters.statistics(), .state = nullptr};
    };
    memory.plan([&] {
        network.prepare(parameters.weights(), parameters.statistics());
        predictor.plan(view());
    });
    memory.allocate();
    parameters.load(weights_by_formula(), "formula", {});
    network.prepare(parameters.weights(), parameters.statistics());

    Values images = golden_images(), features;
    const size_t image = images.size() / kImages;
    images.insert(images.end(), images.begin(), images.begin() + static_cast<std::ptrdiff_t>(image));  // three, the last as the first
    predictor.run(3, predictor.values(images), view(), [&](const Predictor::Batch& batch) {
        const Values some = download_values(*device, batch.features);
        features.insert(features.end(), some.begin(), some.end());
        CHECK(batch.logits.count == batch.count * 1008);
    });
    REQUIRE(features.size() == 3 * 2048);
    check_equal("the third's", Values(features.begin() + 2 * 2048, features.end()), Values(features.begin(), features.begin() + 2048));
    const Values golden = SafetensorsFile::read(std::string(JEM_GOLDEN_DIR) + "/inception/75.safetensors").doubles("features");
    const Values probe = probe_of(Values(features.begin(), features.begin() + 2 * 2048));
    Values limits(golden.size(), 5 * kF32 * golden[0] / 64);  // Winograd's
    limits[0] = limits[1] = 5 * kF32 * golden[0];
    check_within("features", probe, golden, limits);
}

TEST_CASE("a_file_that_lacks_a_tensor_of_inception_or_has_another_is_refused_by_name") {
    const auto device = make_cpu_device({.threads = 1});
    const Inception network(settings_of(75));
    Memory memory(*device);
    Parameters parameters(*device, memory, network, {});
    memory.allocate();
    const TempFolder folder;
    const std::string path = (folder.path() / "inception.safetensors").string();
    const auto message = [&] {
        try {
            load_inception_weights(parameters, path);
        } catch (const InputError& e) {
            return std::string(e.what());
        }
        return std::string();
    };
    const auto holds = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
    CHECK(holds(message(), "There is no file"));
    CHECK(holds(message(), "tools/convert"));

    SafetensorsFile file;
    const std::vector<float> one = {1};
    file.tensors["Mixed_5b.branch1x1.conv.weight"] = make_file_tensor(one, {1});
    file.tensors["AuxLogits.fc.weight"] = make_file_tensor(one, {1});
    file.tensors["Mixed_5b.branch1x1.bn.num_batches_tracked"] = make_file_tensor(one, {1});
    file.tensors["fc.bias"] = make_file_tensor(one, {1});
    file.write_atomically(path);
    const std::string text = message();
    CHECK(holds(text, "shape of Mixed_5b.branch1x1.conv.weight: [1] in the file, [64,192,1,1] expected"));
    CHECK(holds(text, "superfluous: AuxLogits.fc.weight"));
    CHECK(holds(text, "missing: Conv2d_1a_3x3.conv.weight [32,3,3,3]"));
    CHECK(holds(text, "more that are missing"));
    CHECK_FALSE(holds(text, "num_batches_tracked"));
    CHECK_FALSE(holds(text, "fc.bias"));
    CHECK(holds(text, "tools/convert"));
    CHECK_FALSE(holds(text, "--depth"));
}

TEST_CASE("inception_refuses_what_it_does_not_have") {
    CHECK_THROWS_AS(Inception({.size = 74}), std::invalid_argument);
    CHECK_THROWS_AS(Inception({.in_channels = 2}), std::invalid_argument);
    Inception network({.size = 75});
    CHECK_THROWS_AS(network.add_pass({"training", 1, NormMode::running, Gradients::input}), std::logic_error);
    CHECK_THROWS_AS(network.backward(0, {}, {}, nullptr), std::logic_error);
}

}  // namespace jem
