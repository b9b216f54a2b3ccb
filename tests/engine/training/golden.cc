#include "golden.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "data/input_error.h"
#include "engine/settings/recipes/recipes.h"
#include "engine/training/step.h"
#include "tests/formula.h"

namespace jem {

static std::vector<std::string> cases_in(const std::string& folder) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(JEM_GOLDEN_DIR + ("/" + folder)))
        if (entry.path().extension() == ".safetensors") names.push_back(folder + entry.path().stem().string());
    std::sort(names.begin(), names.end());
    return names;
}

std::vector<std::string> golden_case_names() { return cases_in(""); }

static SafetensorsFile read_golden(const std::string& name) {
    return SafetensorsFile::read(std::string(JEM_GOLDEN_DIR) + "/" + name + ".safetensors");
}

// Of a case's config: InputError where it has settings that the engine has not.
static Settings settings_of_case(const nlohmann::json& config) {
    Settings s;
    if (config.contains("recipe")) s = recipe(config.at("recipe").get<std::string>());
    nlohmann::json of_case;
    for (const auto& [key, value] : config.items()) {
        const bool of_inputs = key.starts_with("n_") || key.starts_with("kink_") || key == "has_noise" || key == "initialized" ||
                               key == "optimizer_step" || key == "seed" || key == "iterations" || key == "recipe";
        if (!of_inputs) of_case[key] = value;
    }
    merge_json(s, of_case);
    s.conv_algorithm = ConvAlgorithm::direct;
    return s;
}

std::vector<std::string> family_case_names() {
    std::vector<std::string> names;
    for (const std::string& name : cases_in("family/")) {
        try {
            settings_of_case(nlohmann::json::parse(read_golden(name).metadata.at("config")));
        } catch (const InputError&) {
            continue;
        }
        names.push_back(name);
    }
    return names;
}

// IGEBM's: every other block's second convolution is beyond its cap.
static double gain_of(const std::string& name) {
    const std::string block = "f.block", conv = ".conv2.weight";
    if (!name.starts_with(block) || !name.ends_with(conv)) return 1;
    return std::stoi(name.substr(block.size())) % 2 == 1 ? 4 : 1;
}

GoldenCase load_golden(const std::string& name) {
    GoldenCase g;
    g.name = name;
    g.expected = read_golden(name);
    g.config = nlohmann::json::parse(g.expected.metadata.at("config"));
    const bool of_family = g.config.contains("recipe");
    g.settings = settings_of_case(g.config);

    const uint64_t seed = g.config.at("seed");
    const std::unique_ptr<Network> network = make_network(g.settings);
    for (const TensorInfo& info : network->parameters()) {
        const bool head = info.name.find("_output.") != std::string::npos;
        const double bound = info.fan_in > 0 ? (head ? 2.0 : 1.0) / std::sqrt(static_cast<double>(info.fan_in)) : 0;
        g.checkpoint.tensors[info.name] = formula_tensor(seed, info.name, info.shape, [&](double u) {
            if (info.fan_in > 0) return (2 * u - 1) * bound * gain_of(info.name);
            return info.initial == 1 ? 0.5 + u : 0.3 * (2 * u - 1);  // gamma, beta
        });
        if (const std::string loc = ".loc"; info.name.ends_with(loc)) {
            const std::vector<std::byte> initialized = {std::byte{g.config.at("initialized").get<bool>()}};
            const std::string norm = info.name.substr(0, info.name.size() - loc.size());
            g.checkpoint.tensors[norm + ".initialized"] = make_file_tensor(FileType::u8, initialized, {});
        }
    }
    for (const TensorInfo& info : network->statistics())
        g.checkpoint.tensors[info.name] = formula_tensor(seed, info.name, info.shape, [&](double u) {
            if (info.name.ends_with(".weight_u")) return std::sqrt(3.0) * (2 * u - 1);
            return info.initial == 1 ? 0.5 + u : 0.2 * (2 * u - 1);
        });
    if (g.config.value("optimizer_step", 0) > 0)
        for (const TensorInfo& info : network->parameters())
            g.checkpoint.tensors["adam_v." + info.name] =
                formula_tensor(seed, "adam_v." + info.name, info.shape, [](double u) { return 1e-5 * (0.5 + u); });

    const int64_t c = g.settings.in_channels, size = g.settings.image_size;
    const int64_t n_pos = g.config.at("n_pos"), n_neg = g.config.at("n_neg"), n_lab = g.config.at("n_lab");
    const auto images = [&](const std::string& key, int64_t n, double gain = 0.9) {
        g.batch.tensors[key] = formula_tensor(seed, key, {n, c, size, size}, [=](double u) { return gain * (2 * u - 1); });
    };
    const auto noise = [&](const std::string& key, int64_t n) {
        g.batch.tensors[key] =
            formula_tensor(seed, key, {g.settings.sgld_steps, n, c, size, size}, [](double u) { return std::sqrt(3.0) * (2 * u - 1); });
    };
    const auto labels = [&](const std::string& key, int64_t n) {
        const Uniforms label(seed, key);
        std::vector<int64_t> y;
        for (int64_t i = 0; i < n; ++i)
            y.push_back(static_cast<int64_t>(label(static_cast<uint64_t>(i)) * static_cast<double>(g.settings.num_classes)));
        g.batch.tensors[key] = make_file_tensor(std::span<const int64_t>(y), {n});
    };
    images("x_pos", n_pos);
    images("x_neg_start", n_neg);
    images("x_lab", n_lab);
    labels("y", n_lab);
    if (g.config.at("has_noise")) noise("noise", n_neg);
    if (!of_family) return g;
    labels("y_pos", n_pos);
    labels("y_neg", n_neg);
    if (g.config.at("p_x_y_weight") != 0) {
        images("x_neg_lab_start", n_lab);
        if (g.config.at("has_noise")) noise("noise_lab", n_lab);
    }
    if (g.config.contains("attack_steps")) images("attack_noise", n_lab, 1);
    return g;
}

std::vector<double> probe_of(const std::vector<double>& values) {
    constexpr size_t kSamples = 48;
    const Uniforms u(0, "probe");
    double square = 0, dot = 0;
    for (size_t i = 0; i < values.size(); ++i) {
        square += values[i] * values[i];
        dot += values[i] * (2 * u(i) - 1);
    }
    std::vector<double> out = {std::sqrt(square), dot};
    const size_t count = std::min(values.size(), kSamples), step = values.size() / count;
    for (size_t i = 0; i < count; ++i) out.push_back(values[i * step]);
    return out;
}

double rms(const std::vector<double>& v) {
    double square = 0;
    for (const double x : v) square += x * x;
    return std::sqrt(square / static_cast<double>(std::max<size_t>(v.size(), 1)));
}

void compare(const std::string& name, const std::vector<double>& got, const std::vector<double>& want, double scale, double tolerance) {
    REQUIRE_MESSAGE(got.size() == want.size(), name);
    for (size_t i = 0; i < want.size(); ++i) {
        const double difference = std::fabs(got[i] - want[i]);
        const bool near = difference <= tolerance * scale;
        CHECK_MESSAGE(near, name << "[" << i << "]: got " << got[i] << ", want " << want[i] << ", off by " << difference << ", tolerance "
                                 << tolerance * scale);
        if (!near) return;
    }
}

// Samples against the tensor's rms, the norm against itself, the pattern's dot against the norm (its expected size is norm / sqrt 3).
static void compare_probe(const std::string& name, const std::vector<double>& values, const std::vector<double>& want, double tolerance) {
    const std::vector<double> got = probe_of(values);
    const double norm = want.at(0), typical = norm / std::sqrt(static_cast<double>(values.size()));
    const std::vector<double> got_samples(got.begin() + 2, got.end()), want_samples(want.begin() + 2, want.end());
    if (norm == 0) {
        compare(name + " (zero by construction)", values, std::vector<double>(values.size()), 1, 0);
        return;
    }
    compare(name, got_samples, want_samples, std::max(typical, rms(want_samples)), tolerance);
    compare(name + " norm", {got[0]}, {want[0]}, norm, tolerance);
    compare(name + " pattern", {got[1]}, {want[1]}, norm, tolerance);
}

SafetensorsFile run_golden(Device& device, const GoldenCase& g) {
    const std::unique_ptr<Network> network = make_network(g.settings);
    return run_step(device, *network, g.settings,
                    {.checkpoint = g.checkpoint,
                     .checkpoint_path = g.name,
                     .batch = g.batch,
                     .batch_path = g.name,
                     .optimizer_step = g.config.value("optimizer_step", 0),
                     .iterations = g.config.at("iterations")});
}

void compare_golden(Device& device, const std::string& name, const GoldenTolerance& t) {
    CAPTURE(name);
    const GoldenCase g = load_golden(name);
    const SafetensorsFile got = run_golden(device, g);
    size_t compared = 0;
    for (const auto& entry : g.expected.tensors) {
        const std::string& key = entry.first;
        CAPTURE(key);
        ++compared;
        const std::vector<double> want = g.expected.doubles(key);
        if (g.config.at("iterations") > 1 && got.has(key + "_curve")) {
            compare(key, got.doubles(key + "_curve"), want, rms(want), t.losses);
            continue;
        }
        REQUIRE(got.has(key));
        const std::vector<double> values = got.doubles(key);
        if (key == "logits_lab" || key == "logits_adv")
            compare(key, values, want, rms(want), t.logits);
        else if (key == "x_neg" || key == "x_neg_lab" || key == "x_adv")
            compare(key, values, want, 1, t.x);
        else if (key == "grad_norm")
            compare(key, values, want, rms(want), std::min(1.0, t.gradients));
        else if (key.starts_with("grad"))
            compare_probe(key, values, want, t.gradients);
        else if (key.starts_with("param."))
            compare_probe(key, values, want, t.weights);
        else if (key.starts_with("running."))
            compare_probe(key, values, want, t.statistics);
        else
            compare(key, values, want, std::max(1.0, rms(want)), t.losses);
    }
    CHECK(compared >= 4);
}

void compare_all_golden_f32(Device& device) {
    std::vector<std::string> names = golden_case_names();
    for (const std::string& name : family_case_names()) names.push_back(name);
    for (const std::string& name : names) {
        const GoldenCase g = load_golden(name);
        if (g.config.at("iterations") > 1) continue;
        compare_golden(device, name, g.config.at("kink_free") ? kGoldenF32 : kGoldenF32NearKinks);
    }
}

}  // namespace jem
