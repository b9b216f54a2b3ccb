#include "engine/device/cuda/convolution/plan_cache.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

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
    std::ifstream in(file_, std::ios::binary);
    std::stringstream text;
    text << in.rdbuf();
    const Json json = Json::parse(text.str(), nullptr, false);
    try {
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

    const std::string temporary = file_ + "." + std::to_string(getpid()) + ".tmp";
    std::error_code error;
    const std::filesystem::path folder = std::filesystem::path(file_).parent_path();
    if (!folder.empty()) std::filesystem::create_directories(folder, error);
    std::ofstream out(temporary, std::ios::binary);
    out << text;
    out.close();
    if (out) std::filesystem::rename(temporary, file_, error);
    if (!out || error) {
        warning_ = "Timed plans could not be written to " + file_ + " (" + (error ? error.message() : std::strerror(errno)) +
                   "). They will be timed again in the next run.";
        std::filesystem::remove(temporary, error);
        return false;
    }
    fresh_.clear();
    return true;
}

}  // namespace jem
