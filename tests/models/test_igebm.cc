// IGEBM's network: its tensors, what it refuses, how it begins, what its files tell, and its gradients against differences.
#include "models/igebm.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "models/networks.h"
#include "tests/models/network_on_device.h"

namespace jem {
namespace {

const IgebmSettings kSmall = {.depth = 14, .width = 1, .in_channels = 3, .image_size = 16, .num_classes = 4};

std::vector<std::string> names_of(const std::vector<TensorInfo>& tensors) {
    std::vector<std::string> names;
    for (const TensorInfo& info : tensors) names.push_back(info.name);
    return names;
}

std::vector<int64_t> shape_of(const Network& network, const std::string& name) {
    for (const TensorInfo& info : network.parameters())
        if (info.name == name) return info.shape;
    return {};
}

std::unique_ptr<NetworkOnDevice> on_device(const IgebmSettings& s, NormMode mode, Head head = Head::classes,
                                           std::unique_ptr<Device> device = make_reference_device(DType::f64)) {
    return std::make_unique<NetworkOnDevice>(std::make_unique<Igebm>(s),
                                             Extent{.n = 2, .c = s.in_channels, .h = s.image_size, .w = s.image_size}, mode,
                                             std::move(device), head);
}

}  // namespace

TEST_CASE("igebm_has_two_convolutions_a_block_a_shortcut_where_the_width_changes_and_an_estimate_each") {
    const Igebm small(kSmall);
    const std::vector<std::string> names = names_of(small.parameters());
    const std::vector<std::string> first = {"f.conv1.weight",  "f.block0.shift1",       "f.block0.conv1.weight",
                                            "f.block0.shift2", "f.block0.conv2.weight", "f.block0.gain"};
    REQUIRE(names.size() > first.size());
    CHECK(std::vector<std::string>(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(first.size())) == first);
    CHECK(std::count_if(names.begin(), names.end(), [](const auto& n) { return n.ends_with("shortcut.weight"); }) == 1);
    CHECK(shape_of(small, "f.block2.shortcut.weight") == std::vector<int64_t>{32, 16, 3, 3});
    CHECK(shape_of(small, "f.block5.conv2.weight") == std::vector<int64_t>{32, 32, 3, 3});
    CHECK(shape_of(small, "class_output.weight") == std::vector<int64_t>{4, 32});
    CHECK(small.statistics().size() == 14);  // the stem, two a block, the shortcut
    IgebmSettings s = kSmall;
    s.depth = 20;
    const Igebm large(s);
    CHECK(large.statistics().size() == 21);
    CHECK(shape_of(large, "f.block8.conv2.weight") == std::vector<int64_t>{64, 64, 3, 3});
    CHECK(shape_of(large, "f.block2.conv1.weight") == std::vector<int64_t>{16, 16, 3, 3});
    s.spectral_norm = false;
    CHECK(Igebm(s).statistics().empty());
}

TEST_CASE("sizes_that_igebm_does_not_have_are_refused") {
    for (const int64_t depth : {10, 16, 28}) {
        IgebmSettings s = kSmall;
        s.depth = depth;
        CHECK(unsupported_size(s)->flag == "--depth");
        CHECK_THROWS_AS(Igebm{s}, std::invalid_argument);
    }
    IgebmSettings s = kSmall;
    s.image_size = 7;
    CHECK(unsupported_size(s)->flag == "--image-size");
    CHECK(!unsupported_size(kSmall));
}

TEST_CASE("igebm_begins_with_normal_weights_and_blocks_that_are_their_shortcuts") {
    const auto on = on_device(kSmall, NormMode::batch_keep);
    const Values w = on->weights();
    const auto rms_of = [&](const std::string& name) {
        for (const TensorInfo& info : on->network().parameters())
            if (info.name == name) {
                double square = 0;
                for (int64_t i = 0; i < info.count(); ++i) square += std::pow(w[static_cast<size_t>(info.offset + i)], 2);
                return std::sqrt(square / static_cast<double>(info.count()));
            }
        return -1.0;
    };
    CHECK(rms_of("f.block5.conv1.weight") == doctest::Approx(1).epsilon(0.05));
    CHECK(rms_of("f.block5.conv2.weight") == doctest::Approx(1e-10).epsilon(0.05));
    CHECK(rms_of("f.block3.gain") == 1);
    CHECK(rms_of("f.block3.shift1") == 0);
}

TEST_CASE("gradients_of_igebm_are_those_of_differences_with_the_estimates_held") {
    // The estimate moves with the weights, and its u and v are constants of the gradient: without it all is plain. With it the weights' own
    // gradients are held by tests/kernels/test_ops_spectral.cc and the golden cases.
    for (const int64_t size : {16, 9})
        for (const Head head : {Head::classes, Head::energy}) {
            IgebmSettings s = kSmall;
            s.spectral_norm = false;
            s.image_size = size;
            s.energy_head = true;
            CAPTURE(size);
            const auto on = on_device(s, NormMode::batch_keep, head);
            check_gradients(*on, [&](const TensorInfo& info) {
                return info.name.starts_with(head == Head::energy ? "class_output." : "energy_output.");
            });
        }
    IgebmSettings s = kSmall;
    s.spectral_norm = false;
    s.dropout = 0.3;
    const auto on = on_device(s, NormMode::batch_keep);
    check_gradients(*on, [](const TensorInfo&) { return false; });
}

TEST_CASE("the_cpu_has_the_oracles_gradients_of_igebm") {
    // Rounding moves no input of a LeakyReLU across its kink with these data, or the tensor's gradient would be off by per mille.
    constexpr double kRounding = 2e-4;
    const auto oracle = on_device(kSmall, NormMode::batch_keep);
    const auto cpu = on_device(kSmall, NormMode::batch_keep, Head::classes, make_cpu_device({.threads = 2}));
    TestData data(41);
    Values w = random_weights(*oracle, 7);
    for (const TensorInfo& info : oracle->network().parameters())
        if (info.name.ends_with("conv2.weight"))
            for (int64_t i = 0; i < info.count(); ++i) w[static_cast<size_t>(info.offset + i)] = data.uniform(-0.3, 0.3);
    const Values x = data.uniforms(oracle->pixels(), -1, 1), d_logits = data.normals(2 * kSmall.num_classes);
    const Values want = oracle->weight_gradient(w, x, d_logits), got = cpu->weight_gradient(w, x, d_logits);
    for (const TensorInfo& info : oracle->network().parameters()) {
        double square = 0, error = 0;
        for (int64_t i = 0; i < info.count(); ++i) {
            const auto at = static_cast<size_t>(info.offset + i);
            square += want[at] * want[at];
            error = std::max(error, std::abs(got[at] - want[at]));
        }
        CHECK_MESSAGE(error <= kRounding * std::sqrt(square / static_cast<double>(info.count())), info.name, ": off by ", error);
    }
}

TEST_CASE("a_file_of_igebm_tells_its_sizes_and_a_wide_resnet_s_is_none") {
    for (const bool spectral : {true, false}) {
        IgebmSettings s = {.depth = 20, .width = 3, .spectral_norm = spectral, .in_channels = 1, .num_classes = 7};
        SafetensorsFile file;
        const Igebm network(s);
        for (const auto* infos : {&network.parameters(), &network.statistics()})
            for (const TensorInfo& info : *infos) file.tensors[info.name].shape = info.shape;
        Settings found;
        take_shapes(found, file);
        CHECK(found.network == NetworkKind::igebm);
        CHECK(found.norm == NormKind::none);
        CHECK(found.depth == 20);
        CHECK(found.width == 3);
        CHECK(found.spectral_norm == spectral);
        CHECK(found.in_channels == 1);
        CHECK(found.num_classes == 7);
    }
    SafetensorsFile other;
    other.tensors["f.conv1.weight"].shape = {16, 3, 3, 3};
    CHECK(!igebm_from_shapes(other));
}

}  // namespace jem
