#include "engine/device/cuda/convolution/plan_cache.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "engine/files/output_file.h"

namespace jem {
namespace {

using Json = nlohmann::json;

constexpr int kFormat = 2;

}  // namespace

PlanCache::PlanCache(const std::string& file) : file_(file), entries_(read()) {}

PlanCache::Entries PlanCache::read() {
    Entries entries;
    std::error_code ignored;
    if (file_.empty() || !std::filesystem::exists(file_, ignored)) return entries;
    try {
        const Json json = Json::parse(read_file(file_), nullptr, false);
        if (json.at("format").get<int>() != kFormat) throw std::runtime_error("another format");
        for (const auto& [key, value] : json.at("choices").items())
            entries[key] = {.choice = value.at("choice").get<std::string>(), .seconds = value.at("seconds").get<double>()};
    } catch (const std::exception& e) {
        warning_ =
            "The timed plans in " + file_ + " are ignored (the file is damaged). They are timed again; delete it if this comes back.";
        entries.clear();
    }
    return entries;
}

std::optional<PlanChoice> PlanCache::find(const std::string& key) const {
    const auto found = entries_.find(key);
    return found == entries_.end() ? std::nullopt : std::optional(found->second);
}

void PlanCache::remember(const std::string& key, const PlanChoice& choice) {
    entries_[key] = choice;
    fresh_[key] = choice;
}

bool PlanCache::save() {
    if (file_.empty() || fresh_.empty()) return true;
    Entries all = read();  // another process may have written meanwhile
    for (const auto& [key, choice] : fresh_) all[key] = choice;
    Json choices = Json::object();
    for (const auto& [key, c] : all) choices[key] = {{"choice", c.choice}, {"seconds", c.seconds}};
    const std::string text = Json{{"format", kFormat}, {"choices", choices}}.dump(1) + "\n";

    try {
        const std::filesystem::path folder = std::filesystem::path(file_).parent_path();
        if (!folder.empty()) create_folder(folder);
        write_file(file_, text);
    } catch (const std::runtime_error& e) {
        warning_ = std::string("Timed plans could not be written and are timed again in the next run: ") + e.what();
        return false;
    }
    fresh_.clear();
    return true;
}

}  // namespace jem
