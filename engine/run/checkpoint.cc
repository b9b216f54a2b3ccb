#include "engine/run/checkpoint.h"

#include <algorithm>
#include <vector>

#include "data/input_error.h"
#include "data/is_there.h"
#include "engine/files/json.h"
#include "engine/network/file_tensors.h"
#include "engine/settings/table.h"

namespace jem {
namespace {

constexpr const char* kBuffer = "replay_buffer";
constexpr const char* kBirths = "births";
constexpr const char* kWatched = "divergence_watch";
constexpr int64_t kMostIterations = int64_t{1} << 31;  // more than any run makes
constexpr const char* kConfigKey = "config";
constexpr const char* kProgressKey = "progress";

std::string progress_text(const RunProgress& p) {
    nlohmann::ordered_json json = {{"iteration", p.iteration},
                                   {"best_accuracy", p.best_accuracy},
                                   {"best_iteration", p.best_iteration},
                                   {"best_chosen_on", p.best_chosen_on},
                                   {"best_by", p.best_by},
                                   {"best_score", p.best_score},
                                   {"seconds", p.seconds}};
    const Recovery& r = p.recovery;
    json["recovery"] = {{"attempt", r.attempt},   {"rate_factor", r.rate_factor}, {"step_factor", r.step_factor},
                        {"in_a_row", r.in_a_row}, {"diverged_at", r.diverged_at}, {"restored_at", r.restored_at}};
    const StepGrowth& g = p.growth;
    json["growth"] = {{"steps", g.steps}, {"since", g.since}, {"recent", g.recent}, {"seen", g.seen}};
    if (!p.owed.is_null()) json["owed"] = p.owed;
    return json.dump();
}

// Throws nlohmann's exceptions for what is no progress. A run of before a key was thought of has none.
RunProgress progress_of(const nlohmann::ordered_json& json) {
    const nlohmann::ordered_json& iteration = json.at("iteration");
    if (!iteration.is_number_integer() || iteration.get<int64_t>() < 0 || iteration.get<int64_t>() > kMostIterations)
        throw nlohmann::json::other_error::create(0, "no number of iterations", &json);
    RunProgress p{.iteration = iteration.get<int64_t>(),
                  .best_accuracy = json.at("best_accuracy"),
                  .best_iteration = json.at("best_iteration"),
                  .best_chosen_on = json.at("best_chosen_on"),
                  .best_by = json.value("best_by", name_of(BestBy::accuracy)),
                  .best_score = json.value("best_score", json.at("best_accuracy").get<double>()),
                  .seconds = json.at("seconds"),
                  .recovery = {},
                  .growth = {},
                  .watched = {},
                  .owed = {}};
    if (json.contains("owed")) {
        const nlohmann::ordered_json& owed = json.at("owed");
        if (!owed.is_object() ||
            !std::all_of(owed.begin(), owed.end(), [](const auto& value) { return value.is_number() || value.is_null(); }))
            throw nlohmann::json::other_error::create(0, "no line of a log", &owed);
        p.owed = owed;
    }
    if (json.contains("growth")) {
        const nlohmann::ordered_json& g = json.at("growth");
        p.growth = {.steps = g.at("steps"), .since = g.at("since"), .recent = g.at("recent"), .seen = g.at("seen")};
        if (p.growth.steps < 0 || p.growth.since < 0 || p.growth.since > kMostIterations + 2 || p.growth.seen < 0)
            throw nlohmann::json::other_error::create(0, "no growth of K", &g);
    }
    if (!json.contains("recovery")) return p;
    const nlohmann::ordered_json& r = json.at("recovery");
    p.recovery = {.attempt = r.at("attempt"),
                  .rate_factor = r.at("rate_factor"),
                  .step_factor = r.at("step_factor"),
                  .in_a_row = r.at("in_a_row"),
                  .diverged_at = r.at("diverged_at"),
                  .restored_at = r.at("restored_at")};
    if (!(p.recovery.rate_factor > 0 && p.recovery.rate_factor <= 1) || p.recovery.step_factor < 1 ||
        p.recovery.step_factor > kMostStepFactor)
        throw nlohmann::json::other_error::create(0, "factors out of range", &r);
    return p;
}

nlohmann::ordered_json saved_progress(const SafetensorsFile& file) {
    const auto found = file.metadata.find(kProgressKey);
    return found == file.metadata.end() ? nlohmann::ordered_json() : parse_json<nlohmann::ordered_json>(found->second);
}

std::vector<int64_t> buffer_shape(const Settings& s) { return {s.buffer_size, s.in_channels, s.image_size, s.image_size}; }

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

SafetensorsFile state_file(Parameters& parameters, Device& device, const std::optional<BufferArrays>& buffer, const Settings& s,
                           const RunProgress& progress) {
    SafetensorsFile file = weights_file(parameters, s, progress);
    parameters.save_array(parameters.velocity(), file, first_prefix(s));
    if (s.optimizer == Optimizer::adam) parameters.save_array(parameters.second(), file, "adam_v.");
    if (buffer) {
        file.tensors[kBuffer] = tensor_on(device, buffer->images, buffer_shape(s));
        std::vector<std::byte> births(buffer->births.bytes());
        device.download(births.data(), buffer->births.data, births.size());
        file.tensors[kBirths] = make_file_tensor(FileType::i32, std::move(births), {s.buffer_size});
    }
    if (!progress.watched.empty())
        file.tensors[kWatched] = make_file_tensor(std::span<const double>(progress.watched), {std::ssize(progress.watched)});
    return file;
}

RunProgress load_state(Parameters& parameters, Device& device, const std::optional<BufferArrays>& buffer, const Settings& s,
                       const SafetensorsFile& file, const std::string& path) {
    parameters.load(file, path, other_tensors());
    const auto need = [&](Array to, const std::string& prefix) {
        if (!parameters.load_array(to, file, prefix))
            throw InputError(path + " holds no " + prefix +
                             "* (the run was made with another --optimizer or --ema). Resume with its settings.");
    };
    need(parameters.velocity(), first_prefix(s));
    if (s.optimizer == Optimizer::adam) need(parameters.second(), "adam_v.");
    if (parameters.options().average) need(parameters.average(), "ema.");
    if (buffer) {
        if (file.at(kBuffer).shape != buffer_shape(s))
            throw InputError("The replay buffer of " + path +
                             " has another size (the run was made with another --buffer-size). Resume with its settings.");
        upload_tensor(device, buffer->images, file.floating(kBuffer));
        std::vector<int32_t> births(static_cast<size_t>(s.buffer_size));  // unknown: as old as the run
        if (file.has(kBirths)) {
            const std::vector<int64_t> saved = file.ints(kBirths);
            if (saved.size() != births.size())
                throw InputError(path + " has " + std::to_string(saved.size()) + " births of the images in its replay buffer (there are " +
                                 std::to_string(births.size()) + "). Resume from another checkpoint.");
            std::transform(saved.begin(), saved.end(), births.begin(), [](int64_t birth) { return static_cast<int32_t>(birth); });
        }
        device.upload(buffer->births.data, births.data(), buffer->births.bytes());
    }
    const nlohmann::ordered_json json = saved_progress(file);
    try {
        RunProgress progress = progress_of(json);
        if (file.has(kWatched)) progress.watched = file.doubles(kWatched);
        return progress;
    } catch (const nlohmann::json::exception&) {
        throw InputError(path + " carries no counters (it is no state of a run). Resume from a run's own folder.");
    }
}

const std::vector<std::string>& other_tensors() {
    static const std::vector<std::string> prefixes = {"velocity.", "adam_m.", "adam_v.", "ema.", kBuffer, kBirths, kWatched};
    return prefixes;
}

std::array<std::filesystem::path, 2> states_beside(const std::filesystem::path& checkpoint) {
    const std::filesystem::path folder = checkpoint.parent_path();
    return {folder / (checkpoint.stem().string() + ".state.safetensors"), folder / "last.state.safetensors"};
}

std::vector<double> images_of_buffer(const FileTensor& buffer, std::span<const int64_t> numbers) {
    const int64_t channels = buffer.shape.at(1);
    const auto pixels = static_cast<size_t>(channels * buffer.shape.at(2) * buffer.shape.at(3));
    std::vector<double> images(numbers.size() * pixels), image(pixels);
    for (size_t n = 0; n < numbers.size(); ++n) {
        read_values(buffer, numbers[n] * static_cast<int64_t>(pixels), image);
        transpose(std::span<const double>(image), static_cast<int64_t>(pixels) / channels, std::span(images).subspan(n * pixels, pixels));
    }
    return images;
}

std::optional<SavedBuffer> find_buffer(const SafetensorsFile& checkpoint, const std::string& path) {
    if (checkpoint.has(kBuffer)) return SavedBuffer{path, checkpoint.floating(kBuffer)};
    for (const std::filesystem::path& beside : states_beside(path)) {
        if (!is_there(beside)) continue;
        const SafetensorsFile file = SafetensorsFile::read(beside);
        if (file.has(kBuffer)) return SavedBuffer{beside.string(), file.floating(kBuffer)};
    }
    return std::nullopt;
}

StartPoint read_start(const Network& network, const Settings& s) {
    StartPoint start{.path = s.start_from, .file = SafetensorsFile::read_weights(s.start_from), .buffer = {}};
    check_tensors(network, start.file, start.path, other_tensors());
    if (!s.samples()) return start;
    start.buffer = find_buffer(start.file, start.path);
    if (!start.buffer || start.buffer->images.shape == buffer_shape(s)) return start;
    const std::vector<int64_t> has = start.buffer->images.shape, wanted = buffer_shape(s);
    const bool images_differ = has.size() != wanted.size() || !std::equal(has.begin() + 1, has.end(), wanted.begin() + 1);
    throw InputError("The replay buffer of " + start.buffer->path + " is " + shape_text(has) + " (the run's would be " +
                     shape_text(wanted) + ": --buffer-size images of the data set's shape). " +
                     (images_differ ? "Start from weights alone, in a folder without that buffer."
                                    : "Give --buffer-size " + std::to_string(has[0]) + "."));
}

void load_start(Parameters& parameters, Device& device, const StartPoint& start) {
    parameters.load(start.file, start.path, other_tensors());
    if (parameters.options().average) device.copy(parameters.average().data, parameters.weights().data, parameters.weights().bytes());
}

std::optional<int64_t> iteration_of(const SafetensorsFile& file) {
    const nlohmann::ordered_json json = saved_progress(file);
    const auto found = json.is_object() ? json.find("iteration") : json.end();
    return found != json.end() && found->is_number_integer() ? std::optional(found->get<int64_t>()) : std::nullopt;
}

std::optional<Settings> settings_of(const SafetensorsFile& file, const std::string& path) {
    const auto found = file.metadata.find(kConfigKey);
    if (found == file.metadata.end()) return std::nullopt;
    const nlohmann::json json = parse_json(found->second);
    if (!holds_settings(json)) return std::nullopt;
    return settings_of_run(json, "the configuration of " + path);
}

}  // namespace jem
