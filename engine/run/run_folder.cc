#include "engine/run/run_folder.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "data/input_error.h"
#include "data/is_there.h"
#include "engine/files/output_file.h"

namespace jem {

RunFolder::RunFolder(std::filesystem::path root) : root_(std::move(root)) {}

void RunFolder::create() const {
    for (const char* folder : {"", "checkpoints", "samples"}) create_folder(root_ / folder);
}

std::unique_ptr<RunLock> RunFolder::own() const {
    create();
    auto lock = std::make_unique<RunLock>(root_);
    remove_dead_temporaries(root_, {"config.json.", "convolutions.json.", "metrics.jsonl."});
    remove_dead_temporaries(root_ / "checkpoints", {"last.", "best.", "epoch_"});
    remove_dead_temporaries(root_ / "samples", {"iteration_"});
    return lock;
}

bool RunFolder::has_config() const { return is_there(config()); }

bool RunFolder::has_checkpoint() const { return is_there(state()) || is_there(last()); }

bool RunFolder::has_run() const { return has_checkpoint() || is_there(metrics()); }

std::filesystem::path RunFolder::archive(int64_t epochs) const {
    return root_ / "checkpoints" / fmt::format("epoch_{:04}.safetensors", epochs);
}

std::filesystem::path RunFolder::sample(int64_t iteration) const {
    return root_ / "samples" / fmt::format("iteration_{:07}.png", iteration);
}

void RunFolder::write_config(const Settings& settings) const { write_file(config(), to_json(settings).dump(2) + "\n"); }

Settings RunFolder::read_config() const {
    if (!has_config())
        throw InputError("There is no " + config().string() + " (no run has been started there). Start one without --resume.");
    const nlohmann::json json = nlohmann::json::parse(read_file(config()), nullptr, false);
    if (json.is_discarded())
        throw InputError(config().string() + " is damaged (it is no JSON). Restore it, or start anew in another folder.");
    return settings_of_run(json, config().string());
}

void RunFolder::cut_metrics(int64_t last_iteration) const {
    std::istringstream in(is_there(metrics()) ? read_file(metrics()) : "");
    std::ostringstream kept;
    for (std::string line; std::getline(in, line);) {
        const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
        const auto iteration = json.is_object() ? json.find("iteration") : json.end();
        if (iteration != json.end() && iteration->is_number_integer() && iteration->get<int64_t>() <= last_iteration) kept << line << "\n";
    }
    write_file(metrics(), kept.str());
}

void RunFolder::append_metrics(const nlohmann::ordered_json& line) const {
    std::ofstream out(metrics(), std::ios::app);
    out << line.dump() + "\n" << std::flush;
    if (!out) throw std::runtime_error("Cannot write " + metrics().string() + " (" + std::strerror(errno) + "). Make room.");
}

}  // namespace jem
