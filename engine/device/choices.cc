#include "engine/device/choices.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "engine/files/json.h"
#include "engine/files/messages.h"
#include "engine/files/output_file.h"

namespace jem {
namespace {

using Json = nlohmann::json;

constexpr int kFormat = 2;
constexpr const char* kBits = "; the last bits of what follows may differ.";

// "GPU | LIBRARY VERSION" of a key
std::string machine_of(const std::string& key) {
    const std::string between = " | ";
    const size_t gpu = key.find(between);
    return gpu == std::string::npos ? key : key.substr(0, key.find(between, gpu + between.size()));
}

}  // namespace

Choices::Choices(std::string machine, const std::string& file) : machine_(std::move(machine)), file_(file), shared_(read()) {}

Choices::Entries Choices::entries_of(const std::string& text) {
    Entries entries;
    const Json json = parse_json(text);
    if (json.at("format") != kFormat) throw std::runtime_error("another format");
    for (const auto& [key, value] : json.at("choices").items())
        entries[key] = {.choice = value.at("choice").get<std::string>(), .seconds = value.at("seconds").get<double>()};
    return entries;
}

std::string Choices::text_of(const Entries& entries) {
    Json choices = Json::object();
    for (const auto& [key, c] : entries) choices[key] = {{"choice", c.choice}, {"seconds", c.seconds}};
    return Json{{"format", kFormat}, {"choices", choices}}.dump(1) + "\n";
}

Choices::Entries Choices::read() const {
    std::error_code ignored;
    if (file_.empty() || !std::filesystem::exists(file_, ignored)) return {};
    try {
        return entries_of(read_file(file_));
    } catch (const std::exception&) {
        tell("The timed plans in " + file_ + " are ignored (the file is damaged). They are timed again; delete it if this comes back.");
        return {};
    }
}

void Choices::depart(const std::string& text) {
    if (!departure_.empty()) return;
    departure_ = text;
    tell(text);
}

void Choices::keep(const std::string& text, const std::string& from) {
    try {
        for (const auto& [key, choice] : entries_of(text)) {
            run_[key] = choice;
            kept_.insert(key);
        }
    } catch (const std::exception&) {
        depart("The convolution engines that the run keeps in " + from + " are unknown (the file is damaged). They are chosen anew" +
               kBits);
    }
}

std::string Choices::text() const { return text_of(run_); }

std::optional<PlanChoice> Choices::find(const std::string& key) {
    if (const auto found = run_.find(full(key)); found != run_.end()) return found->second;
    if (!kept_.empty() && std::none_of(kept_.begin(), kept_.end(), [&](const auto& k) { return machine_of(k) == machine_; }))
        depart("The convolution engines that the run keeps were chosen on " + machine_of(*kept_.begin()) + " (this is " + machine_ +
               "). They are chosen anew" + kBits);
    const auto found = shared_.find(full(key));
    if (found == shared_.end()) return std::nullopt;
    return run_[full(key)] = found->second;
}

void Choices::remember(const std::string& key, const PlanChoice& choice) {
    shared_[full(key)] = choice;
    fresh_[full(key)] = choice;
    run_[full(key)] = choice;
}

void Choices::remember_for_run(const std::string& key, const PlanChoice& choice) { run_[full(key)] = choice; }

void Choices::is_gone(const std::string& key) {
    const auto found = run_.find(full(key));
    if (found == run_.end()) return;
    const std::string text = " is gone (" + key + "). It is chosen anew";
    if (kept_.contains(full(key)))
        depart("The convolution engine " + found->second.choice + ", which the run keeps," + text + kBits);
    else
        tell("The convolution engine " + found->second.choice + ", which was remembered," + text + ".");
}

void Choices::forget(const std::string& key) {
    run_.erase(full(key));
    shared_.erase(full(key));
}

bool Choices::save() {
    if (file_.empty() || fresh_.empty()) return true;
    Entries all = read();  // another process may have written meanwhile
    for (const auto& [key, choice] : fresh_) all[key] = choice;
    try {
        const std::filesystem::path folder = std::filesystem::path(file_).parent_path();
        if (!folder.empty()) create_folder(folder);
        write_file(file_, text_of(all));
    } catch (const std::runtime_error& e) {
        tell(std::string("Timed plans could not be written and are timed again in the next run: ") + e.what());
        return false;
    }
    fresh_.clear();
    return true;
}

}  // namespace jem
