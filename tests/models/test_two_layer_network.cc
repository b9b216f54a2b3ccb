// A second network, made of the layers that all share: its gradients against differences, and a whole training iteration of it.
#include "tests/models/two_layer_network.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "engine/settings/recipes/recipes.h"
#include "engine/training/step.h"
#include "tests/models/network_on_device.h"

namespace jem {
namespace {

class TwoLayersOnDevice : public NetworkOnDevice {
public:
    TwoLayersOnDevice(const TwoLayerSettings& s, NormMode mode)
        : NetworkOnDevice(std::make_unique<TwoLayerNetwork>(s), {.n = 3, .c = s.in_channels, .h = s.image_size, .w = s.image_size}, mode) {}
};

}  // namespace

TEST_CASE("a_convolution_without_bias_has_no_parameter_for_it") {
    const TwoLayerNetwork network({});
    std::vector<std::string> names;
    for (const TensorInfo& info : network.parameters()) names.push_back(info.name);
    CHECK(names == std::vector<std::string>{"conv.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"});
    CHECK(network.parameter_count() == 16 * 3 * 9 + 2 * 16 + 4 * 16 + 4);
    CHECK(network.statistic_count() == 2 * 16);
}

TEST_CASE("a_second_network_s_gradients_are_those_of_differences") {
    for (const NormMode mode : {NormMode::batch_keep, NormMode::running}) {
        TwoLayersOnDevice on({}, mode);
        check_gradients(on, [](const TensorInfo&) { return false; });
    }
}

TEST_CASE("gradients_pass_a_dropout_by_the_mask_of_their_own_pass_and_evaluation_drops_nothing") {
    const TwoLayerSettings s{.dropout = 0.4, .seed = 3};
    TwoLayersOnDevice on(s, NormMode::batch_keep), evaluated(s, NormMode::running), plain({}, NormMode::running);
    TestData data(41);
    const Values w = random_weights(on, 7), x = data.uniforms(on.pixels(), -1, 1), d_logits = data.normals(on.outputs());
    const Values d_x = on.input_gradient(w, x, d_logits), direction = data.normals(on.pixels());
    const auto loss = [&](double by) { return dot(d_logits, on.logits(w, moved(x, direction, by))); };
    const double want = (loss(kStep) - loss(-kStep)) / (2 * kStep);
    CHECK(dot(d_x, direction) == doctest::Approx(want).epsilon(kGradientError));
    CHECK(on.logits(w, x) != on.logits(w, x, false));  // the other pass has another mask
    check_equal("without dropout", evaluated.logits(w, x), plain.logits(w, x));
}

// One iteration in f32 and in f64, relative to each tensor's norm: an input of a ReLU or a maximum that rounding decides otherwise moves a
// gradient by per mille.
constexpr double kDecidedOtherwise = 0.01;

TEST_CASE("an_iteration_of_a_second_network_on_the_cpu_is_the_oracle_s") {
    const TwoLayerSettings sizes{.dropout = 0.25, .seed = 5};
    Settings s = recipe("sada-jem");
    s.in_channels = sizes.in_channels;
    s.image_size = sizes.image_size;
    s.num_classes = sizes.num_classes;
    s.sgld_steps = 3;
    s.lr = 0.05;
    SafetensorsFile checkpoint, batch;
    TwoLayersOnDevice on(sizes, NormMode::running);
    on.parameters().save_array(on.parameters().weights(), checkpoint, "");
    on.parameters().save_statistics(checkpoint, "");
    TestData data(43);
    const auto images = [&](const char* name, int64_t n) {
        const Values values = data.uniforms(n * on.pixels() / 3, -1, 1);
        batch.tensors[name] = make_file_tensor(std::span<const double>(values), {n, sizes.in_channels, sizes.image_size, sizes.image_size});
    };
    images("x_pos", 4);
    images("x_neg_start", 4);
    images("x_lab", 6);
    const std::vector<int64_t> labels = {0, 3, 1, 2, 2, 0};
    batch.tensors["y"] = make_file_tensor(std::span<const int64_t>(labels), {6});
    const auto dump_of = [&](std::unique_ptr<Device> device) {
        TwoLayerNetwork network(sizes);
        return run_step(
            *device, network, s,
            {.checkpoint = checkpoint, .checkpoint_path = "checkpoint", .batch = batch, .batch_path = "batch", .iterations = 2});
    };
    const SafetensorsFile want = dump_of(make_reference_device(DType::f64)), got = dump_of(make_cpu_device({.threads = 2}));
    REQUIRE(got.tensors.size() == want.tensors.size());
    CHECK(want.has("grad2.conv.weight"));
    CHECK(!want.has("param.conv.bias"));
    for (const auto& entry : want.tensors) {
        const Values a = got.doubles(entry.first), b = want.doubles(entry.first);
        REQUIRE(a.size() == b.size());
        double error = 0, square = 0;
        for (size_t i = 0; i < b.size(); ++i) error += (a[i] - b[i]) * (a[i] - b[i]), square += b[i] * b[i];
        CHECK_MESSAGE(std::sqrt(error) <= kDecidedOtherwise * std::sqrt(square), entry.first, ": error ", std::sqrt(error), " of ",
                      std::sqrt(square));
    }
    // The running statistics moved by the layer's own momentum, the weights by their gradients.
    CHECK(want.doubles("running.norm.running_var") != on.statistics());
    CHECK(want.doubles("param.conv.weight") != checkpoint.doubles("conv.weight"));
}

}  // namespace jem
