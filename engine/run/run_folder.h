// A run's folder: where its files lie, its configuration and its log. Whatever is killed when, what lies there is whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

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
    std::filesystem::path kept(int64_t iteration) const;  // an older checkpoint's state, to go back to
    std::vector<int64_t> kept_iterations() const;         // of those that are there, the newest first
    const std::filesystem::path& root() const { return root_; }

    // Removes states that are kept: those that are newer than the last checkpoint, and of those at least `apart` iterations older all
    // but the newest `most`.
    void drop_kept(int64_t last_iteration, int64_t most, int64_t apart) const;

    void write_config(const Settings& settings) const;
    // Settings of config.json; InputError if it is missing or damaged.
    Settings read_config() const;

    // Keeps the log lines up to that iteration (0: none): those beyond a checkpoint will be written again. Of going back it keeps what
    // that state has behind it, whatever iterations it went back to.
    void cut_metrics(int64_t last_iteration, uint64_t attempt) const;
    // Whether a line is one of those that it keeps.
    static bool stays(const std::string& line, int64_t last_iteration, uint64_t attempt);
    // Whole lines, or, where they cannot be written, an error and nothing.
    void append_metrics(const std::string& lines) const;

private:
    std::filesystem::path root_;
};

}  // namespace jem
