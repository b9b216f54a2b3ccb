// Attacks against torchattacks' on the same network, images and starts, in f64 (tests/golden/make_attacks.py).
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/evaluation/apgd.h"
#include "engine/evaluation/attack_starts.h"
#include "engine/evaluation/pgd.h"
#include "engine/evaluation/purification.h"
#include "models/wide_resnet.h"
#include "tests/check.h"
#include "tests/draws.h"
#include "tests/formula.h"

namespace jem {
namespace {

constexpr int64_t kImages = 6, kChannels = 3, kSide = 8, kPixels = kChannels * kSide * kSide, kClasses = 10;
constexpr Tolerance kSame = {1e-9, 1e-9};   // sums in another order, twenty steps on
constexpr Tolerance kDraws = {1e-6, 1e-6};  // normal draws are made in single precision

const nlohmann::json& golden() {
    static const nlohmann::json json = nlohmann::json::parse(std::ifstream(std::string(JEM_GOLDEN_DIR) + "/attacks.json"));
    return json;
}

// [N, C, H, W] as [N, H, W, C]
Values by_pixel(const Values& nchw) {
    Values out(nchw.size());
    const int64_t area = kSide * kSide;
    for (int64_t i = 0; i < std::ssize(nchw); ++i) {
        const int64_t n = i / kPixels, c = i % kPixels / area, at = i % area;
        out[static_cast<size_t>(n * kPixels + at * kChannels + c)] = nchw[static_cast<size_t>(i)];
    }
    return out;
}

ImageSet image_set() {
    ImageSet set{.name = "made",
                 .channels = kChannels,
                 .height = kSide,
                 .width = kSide,
                 .num_classes = kClasses,
                 .class_names = {},
                 .pixels = {},
                 .labels = golden()["labels"].get<std::vector<int32_t>>()};
    const Uniforms u(golden()["seed"], "bytes");
    Values bytes;
    for (uint64_t i = 0; i < kImages * kPixels; ++i) bytes.push_back(std::floor(256 * u(i)));
    for (const double v : by_pixel(bytes)) set.pixels.push_back(static_cast<uint8_t>(v));
    return set;
}

void load_formula(Parameters& parameters, Network& network) {
    SafetensorsFile file;
    const uint64_t seed = golden()["seed"];
    for (const TensorInfo& info : network.parameters()) {
        const bool head = info.name.find("_output.") != std::string::npos;
        const double bound = info.fan_in > 0 ? (head ? 2.0 : 1.0) / std::sqrt(static_cast<double>(info.fan_in)) : 0;
        file.tensors[info.name] = formula_tensor(seed, info.name, info.shape, [&](double u) {
            if (info.fan_in > 0) return (2 * u - 1) * bound;
            return info.initial == 1 ? 0.5 + u : 0.3 * (2 * u - 1);
        });
    }
    for (const TensorInfo& info : network.statistics())
        file.tensors[info.name] =
            formula_tensor(seed, info.name, info.shape, [&](double u) { return info.initial == 1 ? 0.5 + u : 0.2 * (2 * u - 1); });
    parameters.load(file, "the formula", {});
    network.prepare(parameters.weights(), parameters.statistics());
}

TrainedNetwork trained(Device& device) {
    return {.device = device,
            .conv_algorithm = ConvAlgorithm::direct,
            .size = {.height = kSide, .width = kSide, .channels = kChannels},
            .classes = kClasses,
            .make =
                [] {
                    return std::make_unique<WideResNet>(WideResNetSettings{.depth = 10,
                                                                           .width = 1,
                                                                           .norm = NormKind::batch,
                                                                           .in_channels = kChannels,
                                                                           .image_size = kSide,
                                                                           .num_classes = kClasses});
                },
            .load = load_formula};
}

AttackNorm norm_of(const nlohmann::json& c) { return c["norm"] == "linf" ? AttackNorm::linf : AttackNorm::l2; }
ApgdLoss loss_of(const std::string& name) {
    return name == "ce" ? ApgdLoss::cross_entropy : name == "dlr" ? ApgdLoss::dlr : ApgdLoss::targeted_dlr;
}
std::vector<bool> flags(const nlohmann::json& json) {
    std::vector<bool> out;
    for (const int v : json) out.push_back(v != 0);
    return out;
}

// make_attacks.py's start of APGD.
Values begin_of(const ImageSet& set, AttackNorm norm, double radius) {
    const Uniforms u(golden()["seed"], norm == AttackNorm::linf ? "start linf" : "start l2");
    Values t;
    for (uint64_t i = 0; i < kImages * kPixels; ++i) t.push_back(2 * u(i) - 1);
    t = by_pixel(t);
    Values x = pixels_of(set, std::vector<int64_t>{0, 1, 2, 3, 4, 5});
    for (int64_t n = 0; n < kImages; ++n) {
        double largest = 0, squares = 0;
        for (int64_t i = n * kPixels; i < (n + 1) * kPixels; ++i) {
            const double v = t[static_cast<size_t>(i)];
            largest = std::max(largest, std::fabs(v)), squares += v * v;
        }
        for (int64_t i = n * kPixels; i < (n + 1) * kPixels; ++i) {
            const auto at = static_cast<size_t>(i);
            x[at] = std::clamp(x[at] + radius * t[at] / (norm == AttackNorm::linf ? largest : std::sqrt(squares)), -1.0, 1.0);
        }
    }
    return x;
}

}  // namespace

TEST_CASE("losses_of_attacks_and_their_gradients_equal_pytorchs") {
    for (const nlohmann::json& c : golden()["losses"]) {
        const std::string kind = c["kind"];
        CAPTURE(kind);
        const Values logits = c["logits"];
        const LossAtLogits loss = loss_at_logits(loss_of(kind), logits, c["label"], c["target"]);
        CHECK(loss.value == doctest::Approx(c["value"].get<double>()).epsilon(1e-12));
        check_close("gradient", loss.gradient, c["gradient"].get<Values>(), {1e-12, 1e-12});
    }
}

TEST_CASE("pgd_breaks_the_images_that_torchattacks_does") {
    const auto device = make_reference_device(DType::f64);
    const ImageSet set = image_set();
    for (const nlohmann::json& c : golden()["pgd"]) {
        const std::string what = c["norm"].get<std::string>() + " " + std::to_string(c["eps"].get<int>());
        CAPTURE(what);
        Attacker attacker(trained(*device), norm_of(c), kImages);
        const std::vector<bool> broken =
            attacker.breaks(set, {0, 1, 2, 3, 4, 5},
                            {.limits = {.step_size = 2 * c["step"].get<double>() / 255, .radius = 2 * c["eps"].get<double>() / 255},
                             .steps = c["steps"],
                             .random_start = false});
        // It may have been wrong on the way and right at the end; these cases have none.
        CHECK(broken == flags(c["wrong"]));
        check_close("x", attacker.images(), by_pixel(c["x"].get<Values>()), kSame);
    }
}

TEST_CASE("an_attack_through_purification_moves_images_as_one_written_with_pytorch") {
    const auto device = make_reference_device(DType::f64);
    const ImageSet set = image_set();
    for (const nlohmann::json& c : golden()["purified"]) {
        const std::string what =
            c["norm"].get<std::string>() + " " + std::to_string(c["eps"].get<int>()) + (c["noise"] > 0 ? " with noise" : "");
        CAPTURE(what);
        const int64_t steps = c["purify_steps"], chains = c["chains"];
        PurifiedAttacker attacker(trained(*device), norm_of(c), kImages,
                                  {.steps = steps, .chains = chains, .verdict_chains = 2, .noise = c["noise"], .given_noise = true});
        const Uniforms u(golden()["seed"], "purification noise");
        Values noise;
        for (int64_t i = 0; i < steps * chains * kImages * kPixels; ++i) noise.push_back(4 * u(static_cast<uint64_t>(i)) - 2);
        upload_values(*device, attacker.noise(), by_pixel(noise));
        const std::vector<bool> broken =
            attacker.breaks(set, {0, 1, 2, 3, 4, 5},
                            {.limits = {.step_size = 2 * c["step"].get<double>() / 255, .radius = 2 * c["eps"].get<double>() / 255},
                             .steps = c["steps"],
                             .random_start = false});
        check_close("x", attacker.images(), by_pixel(c["x"].get<Values>()), kSame);
        if (c["noise"] == 0) CHECK(broken == flags(c["wrong"]));  // else chains that decide are others than those attacked
    }
}

TEST_CASE("noise_before_an_image_is_classified_is_drawn_anew_for_each_chain_and_an_attack_sees_it") {
    const auto device = make_reference_device(DType::f64);
    const ImageSet set = image_set();
    const AttackBatch batch = full_batch(set, {0, 1, 2, 3, 4, 5}, kImages);
    PurifiedAttacker noisy(trained(*device), AttackNorm::linf, kImages, {.steps = 0, .chains = 3, .verdict_chains = 3, .start_noise = 0.5});
    noisy.wrong(batch.centres, batch.labels);
    Values expected;
    for (int64_t i = 0; i < 3 * kImages * kPixels; ++i) {
        const double u = expected_normal(random4(0, RandomStream::sgld_noise, 0, 0, static_cast<uint64_t>(i / 4)), static_cast<int>(i % 4));
        expected.push_back(batch.centres[static_cast<size_t>(i % (kImages * kPixels))] + 0.5 * u);
    }
    check_close("chains", download_values(*device, noisy.chains()), expected, kDraws);
    // Hardly any noise: the attack on the network alone.
    const PgdAttack attack = {.limits = {.step_size = 2 * 2.0 / 255, .radius = 2 * 8.0 / 255}, .steps = 5, .random_start = false};
    PurifiedAttacker quiet(trained(*device), AttackNorm::linf, kImages,
                           {.steps = 0, .chains = 2, .verdict_chains = 2, .start_noise = 1e-13});
    Attacker plain(trained(*device), AttackNorm::linf, kImages);
    CHECK(quiet.breaks(set, {0, 1, 2, 3, 4, 5}, attack) == plain.breaks(set, {0, 1, 2, 3, 4, 5}, attack));
    PurifiedAttacker loud(trained(*device), AttackNorm::linf, kImages, {.steps = 0, .chains = 2, .verdict_chains = 2, .start_noise = 0.5});
    loud.breaks(set, {0, 1, 2, 3, 4, 5}, attack);
    CHECK(loud.images() != quiet.images());
}

TEST_CASE("what_many_chains_say_of_an_image_does_not_depend_on_how_many_a_pass_holds") {
    const auto device = make_reference_device(DType::f64);
    const ImageSet set = image_set();
    const AttackBatch batch = full_batch(set, {0, 1, 2, 3, 4, 5}, kImages);
    std::vector<int32_t> others;
    for (const int32_t label : batch.labels) others.push_back((label + 1) % kClasses);
    const Purification how = {.steps = 2, .chains = 4, .verdict_chains = 5, .noise = 0};
    PurifiedAttacker six(trained(*device), AttackNorm::linf, kImages, how), two(trained(*device), AttackNorm::linf, 2, how);
    const std::vector<bool> all = six.wrong(batch.centres, batch.labels);
    for (int64_t n = 0; n < kImages; n += 2) {
        const Values centres(batch.centres.begin() + n * kPixels, batch.centres.begin() + (n + 2) * kPixels);
        const std::vector<bool> found =
            two.wrong(centres, {batch.labels[static_cast<size_t>(n)], batch.labels[static_cast<size_t>(n + 1)]});
        CHECK(found == std::vector<bool>(all.begin() + n, all.begin() + n + 2));
    }
    const std::vector<bool> never = six.wrong(batch.centres, others);
    for (size_t n = 0; n < kImages; ++n) CHECK((never[n] || all[n]));  // no image is of two classes
}

TEST_CASE("apgd_reaches_the_losses_of_torchattacks_and_breaks_the_same_images") {
    const auto device = make_reference_device(DType::f64);
    const ImageSet set = image_set();
    for (const nlohmann::json& c : golden()["apgd"]) {
        const std::string what =
            c["norm"].get<std::string>() + " " + std::to_string(c["eps"].get<int>()) + " " + c["loss"].get<std::string>();
        CAPTURE(what);
        const double radius = 2 * c["eps"].get<double>() / 255;
        Apgd attacker(trained(*device), norm_of(c), kImages);
        const ApgdResult result =
            attacker.run(set, {0, 1, 2, 3, 4, 5}, golden()["targets"].get<std::vector<int64_t>>(),
                         {.loss = loss_of(c["loss"]), .radius = radius, .steps = c["steps"], .begin = begin_of(set, norm_of(c), radius)});
        CHECK(result.broken == flags(c["broken"]));
        check_close("largest loss", result.loss, c["loss_values"].get<Values>(), kSame);
    }
}

TEST_CASE("an_attack_that_starts_at_the_edge_does_so_and_stays_within_the_pixels_range") {
    const ImageSet set = image_set();
    const std::vector<int64_t> numbers = {3, 1};
    const Values x = pixels_of(set, numbers);
    for (const AttackNorm norm : {AttackNorm::linf, AttackNorm::l2}) {
        const Values edge = attack_starts(x, numbers, {.norm = norm, .radius = 0.01, .within = AttackStart::Within::edge, .seed = 3});
        const Values other = attack_starts(x, numbers, {.norm = norm, .radius = 0.01, .seed = 3}),
                     one = attack_starts({x.begin() + kPixels, x.end()}, {1}, {.norm = norm, .radius = 0.01, .seed = 3});
        double largest = 0, squares = 0;
        for (int64_t i = 0; i < kPixels; ++i) {
            const double d = edge[static_cast<size_t>(i)] - x[static_cast<size_t>(i)];
            largest = std::max(largest, std::fabs(d)), squares += d * d;
            CHECK(std::fabs(edge[static_cast<size_t>(i)]) <= 1);
        }
        CHECK((norm == AttackNorm::linf ? largest : std::sqrt(squares)) ==
              doctest::Approx(0.01).epsilon(0.05));  // but for what was clamped
        CHECK(Values(other.begin() + kPixels, other.end()) == one);
    }
}

}  // namespace jem
