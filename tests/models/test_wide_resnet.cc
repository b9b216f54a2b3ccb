// The Wide-ResNet: its tensors by name and size, what it refuses, its initialisation, and its gradients against differences.
#include "models/wide_resnet.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "engine/network/parameters.h"
#include "models/networks.h"
#include "tests/check.h"
#include "tests/models/network_on_device.h"

namespace jem {
namespace {

struct Named {
    std::string name;
    std::vector<int64_t> shape;
    bool operator==(const Named&) const = default;
};

std::string text(const Named& t) {
    std::string s = t.name + " [";
    for (const int64_t d : t.shape) s += std::to_string(d) + " ";
    return s + "]";
}

struct Expected {
    std::vector<Named> parameters, statistics;
};

// The list of names.md, written out once more.
Expected expected_tensors(const WideResNetSettings& s) {
    Expected e;
    const auto conv = [&](const std::string& name, int64_t in, int64_t out, int64_t kernel) {
        e.parameters.push_back({name + ".weight", {out, in, kernel, kernel}});
        e.parameters.push_back({name + ".bias", {out}});
    };
    const auto norm = [&](const std::string& name, int64_t channels) {
        if (s.norm == NormKind::none) return;
        if (s.norm == NormKind::act) {
            e.parameters.push_back({name + ".loc", {1, channels, 1, 1}});
            e.parameters.push_back({name + ".scale", {1, channels, 1, 1}});
            return;
        }
        e.parameters.push_back({name + ".weight", {channels}});
        e.parameters.push_back({name + ".bias", {channels}});
        if (s.norm != NormKind::batch) return;
        e.statistics.push_back({name + ".running_mean", {channels}});
        e.statistics.push_back({name + ".running_var", {channels}});
    };
    conv("f.conv1", s.in_channels, 16, 3);
    int64_t channels = 16;
    for (int64_t group = 1; group <= (s.image_size >= 64 ? 4 : 3); ++group) {
        const int64_t width = std::vector<int64_t>{16, 32, 64, 128}[static_cast<size_t>(group - 1)] * s.width;
        for (int64_t block = 0; block < (s.depth - 4) / 6; ++block) {
            const std::string name = "f.layer" + std::to_string(group) + "." + std::to_string(block);
            norm(name + ".bn1", channels);
            conv(name + ".conv1", channels, width, 3);
            norm(name + ".bn2", width);
            conv(name + ".conv2", width, width, 3);
            if (block == 0 && (group > 1 || width != 16)) conv(name + ".shortcut.0", channels, width, 1);
            channels = width;
        }
    }
    norm("f.bn1", channels);
    e.parameters.push_back({"class_output.weight", {s.num_classes, channels}});
    e.parameters.push_back({"class_output.bias", {s.num_classes}});
    if (s.energy_head) e.parameters.push_back({"energy_output.weight", {1, channels}});
    if (s.energy_head) e.parameters.push_back({"energy_output.bias", {1}});
    return e;
}

void check_tensors(const std::vector<TensorInfo>& got, const std::vector<Named>& want) {
    REQUIRE(got.size() == want.size());
    int64_t offset = 0;
    for (size_t i = 0; i < want.size(); ++i) {
        const Named named{got[i].name, got[i].shape};
        CHECK_MESSAGE(named == want[i], "tensor ", i, ": got ", text(named), ", want ", text(want[i]));
        CHECK(got[i].offset == offset);  // side by side, without gaps
        offset += got[i].count();
    }
}

class WideResNetOnDevice : public NetworkOnDevice {
public:
    WideResNetOnDevice(const WideResNetSettings& s, int64_t batch, NormMode mode,
                       std::unique_ptr<Device> device = make_reference_device(DType::f64), Head head = Head::classes)
        : NetworkOnDevice(std::make_unique<WideResNet>(s), {.n = batch, .c = s.in_channels, .h = s.image_size, .w = s.image_size}, mode,
                          std::move(device), head) {}
};

void check_gradients(const WideResNetSettings& settings, NormMode mode, Head head = Head::classes) {
    WideResNetOnDevice on(settings, 2, mode, make_reference_device(DType::f64), head);
    check_gradients(on, [&](const TensorInfo& info) {
        const bool other_head = info.name.starts_with(head == Head::energy ? "class_output." : "energy_output.");
        const bool conv_bias = info.shape.size() == 1 && info.fan_in > 0 && !info.name.ends_with("_output.bias");
        const bool centred = settings.norm == NormKind::instance || (settings.norm == NormKind::batch && mode != NormMode::running);
        const bool dropped = settings.dropout > 0 && info.name.starts_with("f.layer") && info.name.ends_with(".conv1.bias");
        return other_head || (centred && conv_bias && !dropped);
    });
}

}  // namespace

TEST_CASE("parameters_have_the_published_names_shapes_and_order") {
    for (const NormKind norm : {NormKind::batch, NormKind::none, NormKind::instance, NormKind::layer, NormKind::act})
        for (const auto& [depth, width] : {std::pair<int64_t, int64_t>{10, 1}, {10, 2}, {16, 1}, {28, 10}, {40, 2}})
            for (const auto& [channels, size] : {std::pair<int64_t, int64_t>{1, 28}, {3, 32}, {3, 64}}) {
                WideResNetSettings s = {
                    .depth = depth, .width = width, .norm = norm, .in_channels = channels, .image_size = size, .num_classes = 100};
                CAPTURE(s.depth);
                CAPTURE(s.width);
                CAPTURE(s.image_size);
                for (const bool energy_head : {false, true}) {
                    s.energy_head = energy_head;
                    const WideResNet network(s);
                    const Expected e = expected_tensors(s);
                    check_tensors(network.parameters(), e.parameters);
                    check_tensors(network.statistics(), e.statistics);
                }
            }
}

TEST_CASE("some_names_in_full") {
    const WideResNet network({.depth = 10, .width = 1, .norm = NormKind::batch, .in_channels = 3, .image_size = 32, .num_classes = 10});
    std::vector<std::string> names;
    for (const TensorInfo& info : network.parameters()) names.push_back(info.name);
    const std::vector<std::string> first = {
        "f.conv1.weight",          "f.conv1.bias",          "f.layer1.0.bn1.weight", "f.layer1.0.bn1.bias",
        "f.layer1.0.conv1.weight", "f.layer1.0.conv1.bias", "f.layer1.0.bn2.weight", "f.layer1.0.bn2.bias",
        "f.layer1.0.conv2.weight", "f.layer1.0.conv2.bias", "f.layer2.0.bn1.weight"};  // width 1: no shortcut in layer1
    REQUIRE(names.size() > first.size());
    CHECK(std::vector<std::string>(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(first.size())) == first);
    const std::vector<std::string> last = {"f.layer3.0.shortcut.0.weight", "f.layer3.0.shortcut.0.bias", "f.bn1.weight", "f.bn1.bias",
                                           "class_output.weight",          "class_output.bias"};
    CHECK(std::vector<std::string>(names.end() - 6, names.end()) == last);
}

TEST_CASE("parameter_counts_are_the_published_ones") {
    const auto count = [](int64_t depth, int64_t width, NormKind norm, int64_t channels, int64_t size, int64_t classes) {
        return WideResNet(
                   {.depth = depth, .width = width, .norm = norm, .in_channels = channels, .image_size = size, .num_classes = classes})
            .parameter_count();
    };
    CHECK(count(28, 10, NormKind::batch, 3, 32, 10) == 36489290);
    CHECK(count(28, 10, NormKind::batch, 3, 32, 100) == 36489290 + 90 * 641);
    // Without norms: gamma and beta of 16 + 160 * 8 in group 1, 160 + 320 * 7 in group 2 ... are gone.
    const int64_t normed = (16 + 160 * 7) + (160 + 320 * 7) + (320 + 640 * 7) + 640;
    CHECK(count(28, 10, NormKind::none, 3, 32, 10) == 36489290 - 2 * normed);
    CHECK(count(28, 10, NormKind::batch, 1, 28, 10) == 36489290 - 2 * 16 * 9);
}

TEST_CASE("sizes_that_no_such_network_has_are_refused") {
    const WideResNetSettings good = {
        .depth = 10, .width = 1, .norm = NormKind::batch, .in_channels = 3, .image_size = 32, .num_classes = 10};
    CHECK_NOTHROW(WideResNet{good});
    const auto refuses = [&](auto change, const std::string& flag) {
        WideResNetSettings s = good;
        change(s);
        std::string message;
        try {
            const WideResNet network(s);
        } catch (const std::invalid_argument& e) {
            message = e.what();
        }
        CHECK_MESSAGE(message.find(flag) != std::string::npos, flag, " expected in \"", message, "\"");
    };
    for (const int64_t depth : {-2, 0, 4, 9, 11, 12, 27, 29})
        refuses([=](WideResNetSettings& s) { s.depth = depth; }, "--depth " + std::to_string(depth));
    for (const int64_t width : {-1, 0, 33}) refuses([=](WideResNetSettings& s) { s.width = width; }, "--width");
    for (const int64_t channels : {0, 2, 4}) refuses([=](WideResNetSettings& s) { s.in_channels = channels; }, "--in-channels");
    for (const int64_t size : {0, 7, 65}) refuses([=](WideResNetSettings& s) { s.image_size = size; }, "--image-size");
    for (const int64_t classes : {-1, 0, 1, 10001}) refuses([=](WideResNetSettings& s) { s.num_classes = classes; }, "--num-classes");
}

TEST_CASE("a_pass_cannot_be_added_to_a_built_network") {
    const auto device = make_reference_device(DType::f32);
    WideResNet network({.depth = 10, .width = 1, .norm = NormKind::none, .in_channels = 1, .image_size = 8, .num_classes = 2});
    Memory memory(*device);
    network.add_pass({"one", 1, NormMode::running, Gradients::none});
    network.build(*device, memory, ConvAlgorithm::direct);
    CHECK_THROWS_AS(network.add_pass({"late", 1, NormMode::running, Gradients::none}), std::logic_error);
}

TEST_CASE("a_pass_through_a_head_that_the_network_has_not_is_refused") {
    WideResNet network({.depth = 10, .width = 1, .norm = NormKind::none, .in_channels = 1, .image_size = 8, .num_classes = 2});
    CHECK_THROWS_AS(network.add_pass({"energy", 1, NormMode::running, Gradients::none, Head::energy}), std::logic_error);
}

TEST_CASE("an_energy_head_is_one_unit_and_changes_nothing_else") {
    WideResNetSettings s = {.depth = 10, .width = 2, .norm = NormKind::batch, .in_channels = 3, .image_size = 8, .num_classes = 4};
    WideResNetOnDevice plain(s, 2, NormMode::running);
    s.energy_head = true;
    WideResNetOnDevice classes(s, 2, NormMode::running);
    WideResNetOnDevice energy(s, 2, NormMode::running, make_reference_device(DType::f64), Head::energy);
    const Values x = TestData(31).uniforms(plain.pixels(), -1, 1), w = classes.weights();
    check_equal("the initial weights", Values(w.begin(), w.begin() + plain.network().parameter_count()), plain.weights());
    check_equal("logits", classes.logits(w, x), plain.logits(plain.weights(), x));
    const Values units = energy.logits(w, x), features = energy.read(energy.output(Output::features));
    const size_t channels = features.size() / 2, head = w.size() - channels - 1;
    Values want(2, w.back());
    for (size_t i = 0; i < features.size(); ++i) want[i / channels] += features[i] * w[head + i % channels];
    check_close("unit", units, want, {1e-14, 1e-14});
    const Tensor unit = energy.output(Output::logits);
    CHECK(unit.n == 2);
    CHECK(unit.c == 1);
}

TEST_CASE("a_pass_hands_out_the_first_convolution_s_output_and_the_features") {
    constexpr int64_t kSide = 8, kOut = 16;
    const WideResNetSettings s = {
        .depth = 10, .width = 1, .norm = NormKind::batch, .in_channels = 1, .image_size = kSide, .num_classes = 3};
    WideResNetOnDevice on(s, 2, NormMode::running);
    const Values x = TestData(37).uniforms(on.pixels(), -1, 1), w = on.weights(), logits = on.logits(w, x);
    const Tensor first = on.output(Output::first_convolution), features = on.output(Output::features);
    REQUIRE(first.count() == 2 * kOut * kSide * kSide);
    CHECK(first.c == kOut);
    CHECK(features.count() == 2 * 64);
    // f.conv1, padded with zeros, as a loop
    Values want(static_cast<size_t>(first.count()));
    for (int64_t n = 0; n < 2; ++n)
        for (int64_t c = 0; c < kOut; ++c)
            for (int64_t row = 0; row < kSide; ++row)
                for (int64_t column = 0; column < kSide; ++column) {
                    double sum = w[static_cast<size_t>(kOut * 9 + c)];
                    for (int64_t tap = 0; tap < 9; ++tap) {
                        const int64_t y = row + tap / 3 - 1, z = column + tap % 3 - 1;
                        if (y < 0 || y >= kSide || z < 0 || z >= kSide) continue;
                        sum += w[static_cast<size_t>(c * 9 + tap)] * x[static_cast<size_t>((n * kSide + y) * kSide + z)];
                    }
                    const int64_t plane = n * (kOut / first.block) + c / first.block;
                    want[static_cast<size_t>((plane * kSide * kSide + row * kSide + column) * first.block + c % first.block)] = sum;
                }
    check_close("first convolution", on.read(first), want, {1e-14, 1e-14});
    const Values f = on.read(features);
    Values from_features;
    for (size_t i = 0; i < 6; ++i) {
        const size_t unit = i % 3, head = w.size() - 3 - 3 * 64 + unit * 64;
        double sum = w[w.size() - 3 + unit];
        for (size_t k = 0; k < 64; ++k) sum += f[i / 3 * 64 + k] * w[head + k];
        from_features.push_back(sum);
    }
    check_close("logits", logits, from_features, {1e-14, 1e-14});
}

TEST_CASE("a_checkpoint_s_energy_head_is_read_where_the_network_has_it_and_left_unread_elsewhere") {
    WideResNetSettings s = {.depth = 10, .width = 1, .norm = NormKind::batch, .in_channels = 1, .image_size = 8, .num_classes = 3};
    WideResNetOnDevice conditional(s, 1, NormMode::running);
    s.energy_head = true;
    WideResNetOnDevice both(s, 1, NormMode::running);
    SafetensorsFile saved, file;
    both.parameters().save_array(both.parameters().weights(), saved, "");
    both.parameters().save_statistics(saved, "");
    for (const auto& [name, tensor] : saved.tensors)  // copies: those lie on the device, which goes on
        file.tensors[name] = make_file_tensor(tensor.type, tensor.bytes(), tensor.shape);
    file.tensors["f.linear.weight"] = file.at("class_output.weight");
    const Values written = both.weights();
    for (NetworkOnDevice* on : std::initializer_list<NetworkOnDevice*>{&conditional, &both}) {
        on->parameters().initialise(12);
        on->parameters().load(file, "file", {});
        check_equal("weights", on->weights(), Values(written.begin(), written.begin() + on->network().parameter_count()));
        CHECK(skipped_tensors(file, on->network()) == " f.linear.weight");
    }
    CHECK(conditional.network().idle_prefixes() == std::vector<std::string>{"energy_output."});
    CHECK(both.network().idle_prefixes().empty());
    file.tensors.erase("energy_output.bias");
    CHECK_NOTHROW(conditional.parameters().load(file, "file", {}));
    CHECK_THROWS_WITH_AS(both.parameters().load(file, "file", {}), doctest::Contains("missing: energy_output.bias [1]"), InputError);
}

TEST_CASE("initialisation_is_uniform_within_one_over_root_fan_in") {
    WideResNetOnDevice on({.depth = 16, .width = 4, .norm = NormKind::batch, .in_channels = 3, .image_size = 8, .num_classes = 10}, 1,
                          NormMode::batch_keep, make_reference_device(DType::f32));
    const Values w = on.weights();
    for (const TensorInfo& info : on.network().parameters()) {
        CAPTURE(info.name);
        const Values v(w.begin() + info.offset, w.begin() + info.offset + info.count());
        if (info.fan_in == 0) {
            const double want = info.name.ends_with(".weight") ? 1 : 0;
            CHECK(std::all_of(v.begin(), v.end(), [&](double x) { return x == want; }));
            continue;
        }
        // fan_in: inputs of one output, of the weight and of its bias.
        const std::string weight = info.name.substr(0, info.name.rfind('.')) + ".weight";
        const auto& all = on.network().parameters();
        const auto found = std::find_if(all.begin(), all.end(), [&](const TensorInfo& t) { return t.name == weight; });
        REQUIRE(found != all.end());
        const double bound = 1 / std::sqrt(static_cast<double>(found->count() / found->shape[0]));
        double largest = 0, sum = 0, square = 0;
        for (const double x : v) {
            largest = std::max(largest, std::fabs(x));
            sum += x;
            square += x * x;
        }
        const double n = static_cast<double>(v.size());
        CHECK(largest <= bound * (1 + 1e-6));
        CHECK(largest > bound * (1 - 12 / n));                     // e^-12 of one that has none so near
        CHECK(std::fabs(sum / n) < 5 * bound / std::sqrt(3 * n));  // five standard errors
        CHECK(std::fabs(square / n - bound * bound / 3) < 5 * bound * bound * std::sqrt(4.0 / 45 / n));
    }
    const Values statistics = on.statistics();
    for (const TensorInfo& info : on.network().statistics())
        for (int64_t i = 0; i < info.count(); ++i)
            CHECK(statistics[static_cast<size_t>(info.offset + i)] == (info.name.ends_with("running_var") ? 1 : 0));
}

TEST_CASE("initialisation_depends_on_the_seed_and_on_nothing_else") {
    const WideResNetSettings s = {.depth = 10, .width = 1, .norm = NormKind::batch, .in_channels = 1, .image_size = 8, .num_classes = 3};
    WideResNetOnDevice reference(s, 1, NormMode::batch_keep), cpu(s, 1, NormMode::batch_keep, make_cpu_device({.threads = 1}));
    check_equal("weights", cpu.weights(), reference.weights());
    const Values before = reference.weights();
    reference.parameters().initialise(12);
    CHECK(reference.weights() != before);
    reference.parameters().initialise(11);
    check_equal("weights", reference.weights(), before);
}

TEST_CASE("gradients_are_those_of_differences_without_norms") {
    check_gradients({.depth = 10, .width = 2, .norm = NormKind::none, .in_channels = 3, .image_size = 8, .num_classes = 4},
                    NormMode::batch_keep);
}

TEST_CASE("gradients_are_those_of_differences_with_batch_statistics") {
    check_gradients({.depth = 10, .width = 2, .norm = NormKind::batch, .in_channels = 3, .image_size = 8, .num_classes = 4},
                    NormMode::batch_keep);
}

TEST_CASE("gradients_are_those_of_differences_for_an_odd_size_and_two_blocks_a_group") {
    check_gradients({.depth = 16, .width = 1, .norm = NormKind::batch, .in_channels = 1, .image_size = 9, .num_classes = 2},
                    NormMode::batch_keep);
}

TEST_CASE("gradients_are_those_of_differences_with_running_statistics") {
    check_gradients({.depth = 10, .width = 2, .norm = NormKind::batch, .in_channels = 3, .image_size = 8, .num_classes = 4},
                    NormMode::running);
}

TEST_CASE("gradients_are_those_of_differences_with_norms_of_images_and_with_act_norms") {
    for (const NormKind norm : {NormKind::instance, NormKind::layer, NormKind::act})
        for (const NormMode mode : {NormMode::batch_keep, NormMode::running}) {
            CAPTURE(static_cast<int>(norm));
            check_gradients({.depth = 10, .width = 2, .norm = norm, .in_channels = 3, .image_size = 16, .num_classes = 4}, mode);
        }
}

TEST_CASE("gradients_are_those_of_differences_through_dropout_and_evaluation_drops_nothing") {
    WideResNetSettings s = {
        .depth = 10, .width = 2, .norm = NormKind::batch, .in_channels = 3, .image_size = 8, .num_classes = 4, .dropout = 0.4, .seed = 3};
    for (const bool recompute : {false, true}) {
        s.recompute = recompute;
        check_gradients(s, NormMode::batch_keep);
    }
    WideResNetSettings plain = s;
    plain.dropout = 0;
    for (const NormMode mode : {NormMode::batch_keep, NormMode::running}) {
        WideResNetOnDevice with(s, 2, mode), without(plain, 2, mode);
        const Values w = random_weights(with, 5), x = TestData(9).uniforms(with.pixels(), -1, 1);
        CHECK((with.logits(w, x) == without.logits(w, x)) == (mode == NormMode::running));
    }
}

TEST_CASE("gradients_are_those_of_differences_through_the_energy_head_and_leave_the_other_head_alone") {
    const WideResNetSettings s = {
        .depth = 10, .width = 2, .norm = NormKind::batch, .in_channels = 3, .image_size = 8, .num_classes = 4, .energy_head = true};
    for (const NormMode mode : {NormMode::batch_keep, NormMode::running})
        for (const Head head : {Head::energy, Head::classes}) check_gradients(s, mode, head);
}

// f32 against f64: an input of a LeakyReLU that rounding moves to the other side of its kink changes a gradient by per mille of its tensor.
constexpr double kOtherSideOfAKink = 0.01;

TEST_CASE("the_cpu_has_the_oracles_weight_gradients_with_running_statistics") {
    const WideResNetSettings s = {.depth = 10, .width = 2, .norm = NormKind::batch, .in_channels = 3, .image_size = 16, .num_classes = 4};
    WideResNetOnDevice oracle(s, 4, NormMode::running), cpu(s, 4, NormMode::running, make_cpu_device({.threads = 2}));
    TestData data(29);
    const Values w = random_weights(oracle, 7), x = data.uniforms(oracle.pixels(), -1, 1), d_logits = data.normals(4 * s.num_classes);
    Values statistics = oracle.statistics();
    for (const TensorInfo& info : oracle.network().statistics())
        for (int64_t i = 0; i < info.count(); ++i)
            statistics[static_cast<size_t>(info.offset + i)] = info.initial == 1 ? data.uniform(0.5, 1.5) : data.uniform(-0.2, 0.2);
    oracle.set_statistics(statistics);
    cpu.set_statistics(statistics);
    const Values want = oracle.weight_gradient(w, x, d_logits), got = cpu.weight_gradient(w, x, d_logits);
    for (const TensorInfo& info : oracle.network().parameters()) {
        double error = 0, square = 0;
        for (int64_t i = info.offset; i < info.offset + info.count(); ++i) {
            const double v = want[static_cast<size_t>(i)], d = got[static_cast<size_t>(i)] - v;
            error += d * d;
            square += v * v;
        }
        CHECK(square > 0);
        CHECK_MESSAGE(std::sqrt(error / square) <= kOtherSideOfAKink, info.name, ": relative error ", std::sqrt(error / square),
                      ", tolerance ", kOtherSideOfAKink);
    }
}

TEST_CASE("input_gradients_with_running_statistics_are_those_of_differences") {
    const WideResNetSettings s = {.depth = 10, .width = 1, .norm = NormKind::batch, .in_channels = 1, .image_size = 8, .num_classes = 3};
    WideResNetOnDevice on(s, 2, NormMode::running);
    TestData data(19);
    const Values w = random_weights(on, 6), x = data.uniforms(on.pixels(), -1, 1), d_logits = data.normals(6);
    const Values d_x = on.input_gradient(w, x, d_logits);
    for (int i = 0; i < 3; ++i) {
        const Values direction = data.normals(static_cast<int64_t>(x.size()));
        const double want =
            (dot(d_logits, on.logits(w, moved(x, direction, kStep))) - dot(d_logits, on.logits(w, moved(x, direction, -kStep)))) /
            (2 * kStep);
        CHECK(dot(d_x, direction) == doctest::Approx(want).epsilon(kGradientError));
    }
    // The images of a batch do not see each other.
    Values other = x;
    for (size_t i = 0; i < other.size() / 2; ++i) other[i] = -other[i];
    const Values a = on.logits(w, x), b = on.logits(w, other);
    check_equal("second image", Values(b.begin() + 3, b.end()), Values(a.begin() + 3, a.end()));
    CHECK(a[0] != b[0]);
}

TEST_CASE("weight_gradients_accumulate") {
    const WideResNetSettings s = {.depth = 10, .width = 1, .norm = NormKind::none, .in_channels = 1, .image_size = 8, .num_classes = 3};
    WideResNetOnDevice on(s, 2, NormMode::batch_keep);
    TestData data(23);
    const Values w = on.weights(), x = data.uniforms(on.pixels(), -1, 1), d_logits = data.normals(6);
    const Values once = on.weight_gradient(w, x, d_logits);
    Values twice = d_logits;
    for (double& v : twice) v *= 2;
    const Values doubled = on.weight_gradient(w, x, twice);
    Values want = once;
    for (double& v : want) v *= 2;
    check_close("gradient of twice the loss", doubled, want, {1e-12, 1e-12});
}

// The names and shapes of its tensors, without any bytes.
SafetensorsFile shapes_of(const WideResNetSettings& s) {
    SafetensorsFile file;
    const WideResNet network(s);
    for (const auto* infos : {&network.parameters(), &network.statistics()})
        for (const TensorInfo& info : *infos) file.tensors[info.name].shape = info.shape;
    return file;
}

TEST_CASE("the_shapes_of_a_file_tell_depth_width_norm_channels_and_classes") {
    for (const WideResNetSettings& s : std::vector<WideResNetSettings>{
             {.depth = 10, .width = 1, .norm = NormKind::none, .in_channels = 1, .image_size = 28, .num_classes = 3},
             {.depth = 16, .width = 3, .norm = NormKind::batch, .in_channels = 3, .image_size = 32, .num_classes = 100},
             {.depth = 22, .width = 2, .norm = NormKind::act, .in_channels = 3, .image_size = 32, .num_classes = 2},
             {.depth = 22, .width = 2, .norm = NormKind::batch, .in_channels = 3, .image_size = 64, .num_classes = 2}}) {
        CAPTURE(s.depth);
        const WideResNetSettings found = settings_from_shapes(shapes_of(s), {});
        CHECK(found.depth == s.depth);
        CHECK(found.width == s.width);
        CHECK(found.norm == s.norm);
        CHECK(found.in_channels == s.in_channels);
        CHECK(found.num_classes == s.num_classes);
    }
    // Instance and layer norms have the same tensors: asked for, they are what it is.
    for (const NormKind norm : {NormKind::instance, NormKind::layer}) {
        const WideResNetSettings asked = {.depth = 10, .width = 1, .norm = norm};
        CHECK(settings_from_shapes(shapes_of(asked), asked).norm == norm);
    }
    const WideResNetSettings own = {.depth = 40, .width = 7, .norm = NormKind::none, .in_channels = 1, .num_classes = 6};
    SafetensorsFile odd;  // without its tensors, or of another number of dimensions: nothing is told
    odd.tensors["f.conv1.weight"].shape = {16};
    odd.tensors["class_output.weight"].shape = {};
    odd.tensors["f.layer1.0.conv1.bias"].shape = {16};
    const WideResNetSettings same = settings_from_shapes(odd, own);
    CHECK(same.depth == 40);
    CHECK(same.width == 7);
    CHECK(same.norm == NormKind::none);
    CHECK(same.in_channels == 1);
    CHECK(same.num_classes == 6);
}

TEST_CASE("a_file_s_replay_buffer_tells_the_size_of_its_images") {
    SafetensorsFile file = shapes_of({.depth = 10, .width = 2, .norm = NormKind::none, .in_channels = 1, .num_classes = 4});
    Settings s;
    s.image_size = 9;
    take_shapes(s, file);
    CHECK(s.image_size == 9);
    CHECK(s.width == 2);
    CHECK(s.num_classes == 4);
    file.tensors["replay_buffer"].shape = {5, 1, 12, 12};
    take_shapes(s, file);
    CHECK(s.image_size == 12);
}

TEST_CASE("images_of_64_pixels_get_a_fourth_group") {
    const WideResNetSettings s = {.depth = 10, .width = 1, .norm = NormKind::batch, .in_channels = 3, .image_size = 64, .num_classes = 5};
    const WideResNet network(s);
    const auto& all = network.parameters();
    const auto shape = [&](const std::string& name) {
        const auto found = std::find_if(all.begin(), all.end(), [&](const TensorInfo& t) { return t.name == name; });
        return found == all.end() ? std::vector<int64_t>{} : found->shape;
    };
    CHECK(shape("f.layer4.0.conv1.weight") == std::vector<int64_t>{128, 64, 3, 3});
    CHECK(shape("f.layer4.0.shortcut.0.weight") == std::vector<int64_t>{128, 64, 1, 1});
    CHECK(shape("f.bn1.weight") == std::vector<int64_t>{128});
    CHECK(shape("class_output.weight") == std::vector<int64_t>{5, 128});
    // It computes: the reference and the CPU agree.
    WideResNetOnDevice reference(s, 1, NormMode::running), cpu(s, 1, NormMode::running, make_cpu_device({.threads = 2}));
    const Values x = TestData(29).uniforms(3 * 64 * 64, -1, 1), w = reference.weights();
    const Values want = reference.logits(w, x);
    check_close("logits", cpu.logits(w, x), want, {1e-5, 1e-5});
    CHECK(*std::max_element(want.begin(), want.end()) != *std::min_element(want.begin(), want.end()));
}

}  // namespace jem
