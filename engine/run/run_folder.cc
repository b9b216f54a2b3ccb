#include "engine/run/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "data/input_error.h"

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

const char* first_prefix(const Settings& s) { return s.optimizer == Optimizer::adam ? "adam_m." : "velocity."; }

}  // namespace

void write_text_atomically(const std::filesystem::path& path, const std::string& text) {
    const std::filesystem::path temporary = path.string() + ".tmp";
    const int file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file < 0)
        throw InputError("Cannot write " + path.string() + " (" + std::strerror(errno) + "). Choose a folder that can be written.");
    size_t written = 0;
    bool ok = true;
    while (ok && written < text.size()) {
        const ssize_t n = write(file, text.data() + written, text.size() - written);
        ok = n > 0;
        if (ok) written += static_cast<size_t>(n);
    }
    ok = ok && fsync(file) == 0;
    int error = errno;
    close(file);
    if (ok && rename(temporary.c_str(), path.c_str()) != 0) {
        ok = false;
        error = errno;
    }
    if (!ok) {
        unlink(temporary.c_str());
        throw std::runtime_error("Cannot write " + path.string() + " (" + std::strerror(error) + "). Make room, or choose another --out.");
    }
}

RunFolder::RunFolder(std::filesystem::path root) : root_(std::move(root)) {}

void RunFolder::create() const {
    for (const char* folder : {"checkpoints", "samples"}) {
        std::error_code error;
        std::filesystem::create_directories(root_ / folder, error);
        if (error)
            throw InputError("Cannot create " + (root_ / folder).string() + " (" + error.message() +
                             "). Choose a folder that can be written.");
    }
    if (access(root_.c_str(), W_OK) != 0)
        throw InputError("Cannot write into " + root_.string() + " (" + std::strerror(errno) + "). Choose a folder that can be written.");
}

bool RunFolder::has_checkpoint() const { return std::filesystem::exists(state()) || std::filesystem::exists(last()); }

std::filesystem::path RunFolder::sample(int64_t iteration) const {
    return root_ / "samples" / fmt::format("iteration_{:07}.png", iteration);
}

void RunFolder::write_config(const Settings& settings) const { write_text_atomically(config(), to_json(settings).dump(2) + "\n"); }

Settings RunFolder::read_config() const {
    std::ifstream in(config());
    if (!in) throw InputError("There is no " + config().string() + " (no run has been started there). Start one without --resume.");
    Settings settings;
    try {
        merge_json(settings, nlohmann::json::parse(in));
    } catch (const nlohmann::json::exception&) {
        throw InputError(config().string() + " is damaged (it is no JSON). Restore it, or start anew in another folder.");
    }
    return settings;
}

void RunFolder::cut_metrics(int64_t last_iteration) const {
    std::ifstream in(metrics());
    std::ostringstream kept;
    for (std::string line; std::getline(in, line);) {
        const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
        const auto iteration = json.is_object() ? json.find("iteration") : json.end();
        if (iteration != json.end() && iteration->is_number_integer() && iteration->get<int64_t>() <= last_iteration) kept << line << "\n";
    }
    write_text_atomically(metrics(), kept.str());
}

void RunFolder::append_metrics(const nlohmann::ordered_json& line) const {
    std::ofstream out(metrics(), std::ios::app);
    out << line.dump() + "\n" << std::flush;
    if (!out) throw std::runtime_error("Cannot write " + metrics().string() + " (" + std::strerror(errno) + "). Make room.");
}

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
    if (buffer != nullptr) {
        const std::vector<double> nchw =
            to_channels_first(download_values(device, *buffer), s.buffer_size, s.in_channels, s.image_size * s.image_size);
        const std::vector<int64_t> shape = {s.buffer_size, s.in_channels, s.image_size, s.image_size};
        if (device.real_type() == DType::f64) {
            file.tensors[kBuffer] = make_file_tensor(std::span<const double>(nchw), shape);
        } else {
            const std::vector<float> floats(nchw.begin(), nchw.end());
            file.tensors[kBuffer] = make_file_tensor(std::span<const float>(floats), shape);
        }
    }
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
        upload_values(device, *buffer, to_channels_last(file.doubles(kBuffer), s.buffer_size, s.in_channels, s.image_size * s.image_size));
    }
    const auto found = file.metadata.find(kProgressKey);
    const nlohmann::json json = found == file.metadata.end() ? nlohmann::json() : nlohmann::json::parse(found->second, nullptr, false);
    try {
        return {json.at("iteration"), json.at("best_accuracy"), json.at("best_iteration"), json.at("best_chosen_on"), json.at("seconds")};
    } catch (const nlohmann::json::exception&) {
        throw InputError(path + " carries no counters (it is no state of a run). Resume from a run's own folder.");
    }
}

std::optional<Settings> settings_of(const SafetensorsFile& file) {
    const auto found = file.metadata.find(kConfigKey);
    if (found == file.metadata.end()) return std::nullopt;
    const nlohmann::json json = nlohmann::json::parse(found->second, nullptr, false);
    if (!json.is_object()) return std::nullopt;
    Settings settings;
    merge_json(settings, json);
    return settings;
}

}  // namespace jem
