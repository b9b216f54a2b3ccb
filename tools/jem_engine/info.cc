// jem_engine info: what this program is made of, and what this machine offers it.
#include <fmt/core.h>
#include <omp.h>
#include <zlib.h>

#include <CLI/Version.hpp>

#include "data/input_error.h"
#include "data/svhn.h"
#include "engine/device/cpu/onednn.h"
#include "tools/jem_engine/options.h"
#ifdef JEM_HAS_CUDA
#include "engine/device/cuda/cuda_device.h"
#endif

namespace jem {
namespace {

std::string compiler() {
#ifdef __clang__
    return "clang " __clang_version__;
#else
    return "g++ " __VERSION__;
#endif
}

std::string openmp() {
    switch (_OPENMP) {
        case 201511:
            return "4.5";
        case 201811:
            return "5.0";
        case 202011:
            return "5.1";
        default:
            return std::to_string(_OPENMP);
    }
}

// Whether the files of a data set are where they are looked for without --data-dir.
bool installed(const KnownSet& known) {
    try {
        return load_image_set(known, "", Split::test).count() > 0;
    } catch (const InputError&) {
        return false;
    }
}

int info(const CommonOptions& common) {
    using Json = nlohmann::ordered_json;
    const auto cpu = make_cpu_device({.threads = common.threads});
    const std::string fmt_version = fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100);
    const std::string json_version =
        fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH);
    Json json = {{"version", JEM_VERSION},
                 {"compiler", compiler()},
                 {"build_type", JEM_BUILD_TYPE},
                 {"flags", JEM_BUILD_FLAGS},
                 {"libraries",
                  {{"oneDNN", onednn::version()},
                   {"OpenMP", openmp()},
                   {"zlib", zlibVersion()},
                   {"nlohmann-json", json_version},
                   {"CLI11", CLI11_VERSION},
                   {"fmt", fmt_version},
                   {"Random123", "headers without a version"}}},
                 {"devices",
                  {{{"name", "cpu"},
                    {"description", cpu->description()},
                    {"threads", omp_get_max_threads()},
                    {"instruction_set", onednn::instruction_set()}},
                   {{"name", "reference"}, {"description", "plain loops in f32 or f64, one thread: the oracle of the tests"}}}},
                 {"recipes", recipe_names()}};
    // null: any, or as many as the files have
    const auto known_number = [](int64_t n) { return n > 0 ? Json(n) : Json(); };
    json["data"] = Json::array();
    for (const KnownSet& known : known_sets()) {
        const ImageSetShape& shape = known.shape;
        json["data"].push_back({{"name", known.name},
                                {"shape", {shape.channels, known_number(shape.height), known_number(shape.width)}},
                                {"classes", known_number(shape.num_classes)},
                                {"train", known_number(shape.num_train)},
                                {"test", known_number(shape.num_test)},
                                {"installed", installed(known)}});
    }
    json["missing"] = Json::array();
#ifdef JEM_HAS_CUDA
    std::string why;
    for (const std::string& gpu : visible_gpus(why)) json["devices"].push_back({{"name", "cuda"}, {"description", gpu}});
    if (!why.empty())
        json["missing"].push_back({{"name", "GPU"}, {"gives", "training and sampling on NVIDIA GPUs, tf32 and bf16"}, {"get", why}});
    if (!missing_nccl().empty())
        json["missing"].push_back({{"name", "NCCL"}, {"gives", "training on several GPUs"}, {"get", missing_nccl()}});
    else
        json["libraries"]["NCCL"] = nccl_version();
#else
    json["missing"].push_back({{"name", "CUDA device"},
                               {"gives", "training and sampling on NVIDIA GPUs, tf32 and bf16; plan --gpu"},
                               {"get", "left out of this build: " JEM_CUDA_MISSING}});
#endif
    if (!cpu_has_bf16())
        json["missing"].push_back(
            {{"name", "bf16"}, {"gives", "--precision bf16 on the CPU"}, {"get", "a CPU with AVX512_BF16 or AMX; f32 works on any"}});
    if (!missing_mpi().empty())
        json["missing"].push_back(
            {{"name", "MPI"}, {"gives", "training with several processes, on several machines"}, {"get", missing_mpi()}});
    else
        json["libraries"]["MPI"] = mpi_version();
    if (!missing_matio().empty())
        json["missing"].push_back({{"name", "libmatio"}, {"gives", "the data set svhn"}, {"get", missing_matio()}});
    else
        json["libraries"]["libmatio"] = matio_version();
    if (!common.json) {
        const auto text = [](const Json& j) { return j.get<std::string>(); };
        fmt::print("jem_engine {}, {}, {}\n  {}\n", text(json["version"]), text(json["compiler"]), text(json["build_type"]),
                   text(json["flags"]));
        fmt::print("\nlibraries\n");
        for (const auto& [name, version] : json["libraries"].items()) fmt::print("  {:<14} {}\n", name, text(version));
        fmt::print("\ndevices\n");
        for (const auto& d : json["devices"]) fmt::print("  {:<14} {}\n", text(d["name"]), text(d["description"]));
        fmt::print("\nrecipes\n ");
        for (const auto& r : json["recipes"]) fmt::print(" {}", text(r));
        fmt::print("\n\ndata sets\n");
        for (const auto& d : json["data"]) {
            if (d["classes"].is_null()) {
                fmt::print("  {:<14} PNG, JPEG and BMP files of any size, a folder a class; give --data-dir and --image-size\n",
                           text(d["name"]));
                continue;
            }
            fmt::print("  {:<14} {}x{}x{}, {} classes, {} training and {} test images; {}\n", text(d["name"]), d["shape"][0].get<int>(),
                       d["shape"][1].get<int>(), d["shape"][2].get<int>(), d["classes"].get<int>(), d["train"].get<int>(),
                       d["test"].get<int>(), d["installed"].get<bool>() ? "installed" : "give --data-dir");
        }
        fmt::print("\nmissing\n");
        for (const auto& m : json["missing"])
            fmt::print("  {:<14} would give {}\n  {:<14} {}\n", text(m["name"]), text(m["gives"]), "", text(m["get"]));
    }
    print_result(common, json);
    return kExitDone;
}

// JSON on one line, with spaces.
std::string line_of(const nlohmann::ordered_json& json) {
    if (!json.is_structured()) return json.dump();
    std::string text;
    for (const auto& [key, value] : json.items())
        text += (text.empty() ? "" : ", ") + (json.is_object() ? "\"" + key + "\": " : "") + line_of(value);
    return json.is_object() ? "{" + text + "}" : "[" + text + "]";
}

// A configuration of the recipe with its own steps, which says the same as the recipe alone; a step a line.
int write_method(const CommonOptions& common, const std::string& name) {
    const nlohmann::ordered_json json = {{"recipe", name}, {"method", to_json(method_of(recipe(name)))}};
    if (!common.json) {
        std::string steps, others;
        for (const auto& [key, value] : json["method"].items()) {
            if (key != "steps") others += ",\n    \"" + key + "\": " + line_of(value);
            if (key != "steps") continue;
            for (const auto& step : value) steps += (steps.empty() ? "      " : ",\n      ") + line_of(step);
        }
        fmt::print("{{\n  \"recipe\": {},\n  \"method\": {{\n    \"steps\": [\n{}\n    ]{}\n  }}\n}}\n", line_of(json["recipe"]), steps,
                   others);
    }
    print_result(common, json);
    return kExitDone;
}

}  // namespace

Command add_info(CLI::App& app) {
    auto common = std::make_shared<CommonOptions>();
    const auto settings = std::make_shared<bool>(false);
    const auto method = std::make_shared<std::string>();
    app.add_flag("--settings", *settings, "Every setting with its range and default, as a page of Markdown (docs/settings.md)");
    app.add_option("--method", *method, "A recipe's terms and chains as a configuration, to make one's own of: for train --config")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    common->add_to(app);
    return [common, settings, method] {
        if (!method->empty()) return write_method(*common, *method);
        if (!*settings) return info(*common);
        fmt::print("{}", settings_page());
        return kExitDone;
    };
}

}  // namespace jem
