#include "engine/run/checkpoint.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "data/input_error.h"
#include "engine/network/file_tensors.h"
#include "engine/settings/table.h"

namespace jem {
namespace {

constexpr const char* kBuffer = "replay_buffer";
constexpr const char* kConfigKey = "config";
constexpr const char* kProgressKey = "progress";

std::string progress_text(const RunProgress& p) {
    const nlohmann::ordered_json json = {{"iteration", p.iteration},
                                         {"best_accuracy", p.best_accuracy},
                                         {"best_iteration", p.best_iteration},
                                         {"best_chosen_on", p.best_chosen_on},
                                         {"seconds", p.seconds}};
    return json.dump();
}

nlohmann::json progress_of(const SafetensorsFile& file) {
    const auto found = file.metadata.find(kProgressKey);
    return found == file.metadata.end() ? nlohmann::json() : nlohmann::json::parse(found->second, nullptr, false);
}

const char* first_prefix(const Settings& s) { return s.optimizer == Optimizer::adam ? "adam_m." : "velocity."; }

}  // namespace

SafetensorsFile weights_file(Parameters& parameters, const Settings& settings, const RunProgress& progress) {
    SafetensorsFile file;
    parameters.save_array(parameters.weights(), file, "");
    parameters.save_statistics(file, "");
    const int64_t zero = 0;
    for (const TensorInfo& info : parameters.network().statistics()) {
        const std::string suffix = ".running_mean";
        if (!info.name.ends_with(suffix)) continue;
        const std::string name = info.name.substr(0, info.name.size() - suffix.size()) + ".num_batches_tracked";
        file.tensors[name] = make_file_tensor(std::span<const int64_t>(&zero, 1), {});
    }
    if (parameters.options().average) parameters.save_array(parameters.average(), file, "ema.");
    file.metadata[kConfigKey] = to_json(settings).dump();
    file.metadata[kProgressKey] = progress_text(progress);
    file.metadata["format"] = "pt";
    return file;
}

SafetensorsFile state_file(Parameters& parameters, Device& device, const Array* buffer, const Settings& s, const RunProgress& progress) {
    SafetensorsFile file = weights_file(parameters, s, progress);
    parameters.save_array(parameters.velocity(), file, first_prefix(s));
    if (s.optimizer == Optimizer::adam) parameters.save_array(parameters.second(), file, "adam_v.");
    if (buffer != nullptr) file.tensors[kBuffer] = tensor_on(device, *buffer, {s.buffer_size, s.in_channels, s.image_size, s.image_size});
    return file;
}

RunProgress load_state(Parameters& parameters, Device& device, const Array* buffer, const Settings& s, const SafetensorsFile& file,
                       const std::string& path) {
    parameters.load(file, path, {"velocity.", "adam_m.", "adam_v.", "ema.", kBuffer});
    const auto need = [&](Array to, const std::string& prefix) {
        if (!parameters.load_array(to, file, prefix))
            throw InputError(path + " holds no " + prefix +
                             "* (the run was made with another --optimizer or --ema). Resume with its settings.");
    };
    need(parameters.velocity(), first_prefix(s));
    if (s.optimizer == Optimizer::adam) need(parameters.second(), "adam_v.");
    if (parameters.options().average) need(parameters.average(), "ema.");
    if (buffer != nullptr) {
        const std::vector<int64_t> shape = {s.buffer_size, s.in_channels, s.image_size, s.image_size};
        if (file.at(kBuffer).shape != shape)
            throw InputError("The replay buffer of " + path +
                             " has another size (the run was made with another --buffer-size). Resume with its settings.");
        upload_tensor(device, *buffer, file.floating(kBuffer));
    }
    const nlohmann::json json = progress_of(file);
    try {
        return {json.at("iteration"), json.at("best_accuracy"), json.at("best_iteration"), json.at("best_chosen_on"), json.at("seconds")};
    } catch (const nlohmann::json::exception&) {
        throw InputError(path + " carries no counters (it is no state of a run). Resume from a run's own folder.");
    }
}

std::optional<int64_t> iteration_of(const SafetensorsFile& file) {
    const nlohmann::json json = progress_of(file);
    const auto found = json.is_object() ? json.find("iteration") : json.end();
    return found != json.end() && found->is_number_integer() ? std::optional(found->get<int64_t>()) : std::nullopt;
}

std::optional<Settings> settings_of(const SafetensorsFile& file, const std::string& path) {
    const auto found = file.metadata.find(kConfigKey);
    if (found == file.metadata.end()) return std::nullopt;
    const nlohmann::json json = nlohmann::json::parse(found->second, nullptr, false);
    if (!holds_settings(json)) return std::nullopt;
    return settings_of_run(json, "the configuration of " + path);
}

}  // namespace jem
