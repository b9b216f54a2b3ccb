#include "engine/run/run_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <sstream>

#include "data/input_error.h"
#include "data/is_there.h"
#include "engine/files/json.h"
#include "engine/files/output_file.h"

namespace jem {
namespace {

constexpr const char* kKeptPrefix = "iteration_";
constexpr const char* kKeptSuffix = ".state.safetensors";

}  // namespace

RunFolder::RunFolder(std::filesystem::path root) : root_(std::move(root)) {}

void RunFolder::create() const {
    for (const char* folder : {"", "checkpoints", "samples"}) create_folder(root_ / folder);
}

std::unique_ptr<RunLock> RunFolder::own() const {
    create();
    auto lock = std::make_unique<RunLock>(root_);
    remove_dead_temporaries(root_, {"config.json.", "convolutions.json.", "metrics.jsonl."});
    remove_dead_temporaries(root_ / "checkpoints", {"last.", "best.", "epoch_", kKeptPrefix});
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

std::filesystem::path RunFolder::kept(int64_t iteration) const {
    return root_ / "checkpoints" / fmt::format("{}{:07}{}", kKeptPrefix, iteration, kKeptSuffix);
}

std::vector<int64_t> RunFolder::kept_iterations() const {
    std::vector<int64_t> found;
    std::error_code error;
    for (std::filesystem::directory_iterator entry(root_ / "checkpoints", error), end; !error && entry != end; entry.increment(error)) {
        const std::string name = entry->path().filename().string();
        if (!name.starts_with(kKeptPrefix) || !name.ends_with(kKeptSuffix)) continue;
        int64_t iteration = 0;
        const char* begin = name.c_str() + std::strlen(kKeptPrefix);
        if (std::from_chars(begin, name.data() + name.size(), iteration).ptr != begin && kept(iteration).filename() == name)
            found.push_back(iteration);
    }
    std::sort(found.rbegin(), found.rend());
    return found;
}

void RunFolder::drop_kept(int64_t last_iteration, int64_t most, int64_t apart) const {
    int64_t old = 0;
    for (const int64_t iteration : kept_iterations()) {
        if (iteration <= last_iteration - apart) ++old;
        std::error_code ignored;
        if (iteration > last_iteration || old > most) std::filesystem::remove(kept(iteration), ignored);
    }
}

void RunFolder::write_config(const Settings& settings) const { write_file(config(), to_json(settings).dump(2) + "\n"); }

Settings RunFolder::read_config() const {
    if (!has_config())
        throw InputError("There is no " + config().string() + " (no run has been started there). Start one without --resume.");
    const nlohmann::json json = parse_json(read_file(config()));
    if (json.is_discarded())
        throw InputError(config().string() + " is damaged (it is no JSON). Restore it, or start anew in another folder.");
    return settings_of_run(json, config().string());
}

bool RunFolder::stays(const std::string& line, int64_t last_iteration, uint64_t attempt) {
    const nlohmann::json json = parse_json(line);
    if (!json.is_object()) return false;
    const auto iteration = json.find("iteration"), of_attempt = json.find("attempt");
    if (of_attempt != json.end() && of_attempt->is_number_unsigned()) return of_attempt->get<uint64_t>() <= attempt;
    return iteration != json.end() && iteration->is_number_integer() && iteration->get<int64_t>() <= last_iteration;
}

void RunFolder::cut_metrics(int64_t last_iteration, uint64_t attempt) const {
    std::istringstream in(is_there(metrics()) ? read_file(metrics()) : "");
    std::ostringstream kept;
    for (std::string line; std::getline(in, line);)
        if (stays(line, last_iteration, attempt)) kept << line << "\n";
    write_file(metrics(), kept.str());
}

void RunFolder::append_metrics(const std::string& lines) const { append_file(metrics(), lines); }

}  // namespace jem
