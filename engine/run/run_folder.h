// A run's folder: where its files lie, its configuration and its log. Whatever is killed when, what lies there is whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/run/run_lock.h"
#include "engine/settings/settings.h"

namespace jem {

class RunFolder {
public:
    explicit RunFolder(std::filesystem::path root);

    // Creates the folders; InputError where they cannot be written.
    void create() const;
    // Makes this process the folder's owner, for as long as the lock lives: creates what is missing and removes what writers that were
    // killed left behind. InputError where another process owns it.
    std::unique_ptr<RunLock> own() const;
    // InputError where that cannot be told, as in a folder that may not be entered.
    bool has_config() const;
    bool has_checkpoint() const;
    bool has_run() const;  // a checkpoint, or a log

    std::filesystem::path config() const { return root_ / "config.json"; }
    std::filesystem::path metrics() const { return root_ / "metrics.jsonl"; }
    std::filesystem::path choices() const { return root_ / "convolutions.json"; }  // where a device chooses by time
    std::filesystem::path last() const { return root_ / "checkpoints" / "last.safetensors"; }
    std::filesystem::path best() const { return root_ / "checkpoints" / "best.safetensors"; }
    std::filesystem::path state() const { return root_ / "checkpoints" / "last.state.safetensors"; }
    std::filesystem::path archive(int64_t epochs) const;  // the weights after so many
    std::filesystem::path sample(int64_t iteration) const;
    const std::filesystem::path& root() const { return root_; }

    void write_config(const Settings& settings) const;
    // Settings of config.json; InputError if it is missing or damaged.
    Settings read_config() const;

    // Keeps the log lines up to that iteration (0: none): those beyond a checkpoint will be written again.
    void cut_metrics(int64_t last_iteration) const;
    void append_metrics(const nlohmann::ordered_json& line) const;

private:
    std::filesystem::path root_;
};

}  // namespace jem
