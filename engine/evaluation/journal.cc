#include "engine/evaluation/journal.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>

#include "data/input_error.h"
#include "data/is_there.h"
#include "engine/files/json.h"
#include "engine/files/output_file.h"

namespace jem {
namespace {

constexpr const char *kOf = "of", *kPiece = "piece", *kValues = "values";

bool has_text(const nlohmann::json& line, const char* key) { return line.is_object() && line.contains(key) && line[key].is_string(); }

// JSON knows no NaN: null stands for it.
std::vector<double> values_of(const nlohmann::json& json) {
    std::vector<double> values;
    for (const nlohmann::json& v : json) values.push_back(v.is_number() ? v.get<double>() : std::nan(""));
    return values;
}

}  // namespace

Journal::Journal(const std::filesystem::path& path, const std::string& identity) : path_(path), identity_(identity) {
    if (!is_there(path)) return;
    const std::string text = read_file(path);
    size_t whole = 0;  // bytes of whole lines; one that was cut short is written again
    for (size_t end; (end = text.find('\n', whole)) != std::string::npos; whole = end + 1) {
        const nlohmann::json line = parse_json(std::string_view(text).substr(whole, end - whole));
        if (whole == 0 && (!has_text(line, kOf) || line[kOf] != identity)) return;
        if (whole == 0) continue;
        if (!has_text(line, kPiece) || !line.contains(kValues) || !line[kValues].is_array()) break;
        pieces_[line[kPiece]] = values_of(line[kValues]);
    }
    found_ = pieces_.size();
    if (found_ == 0) return;
    std::filesystem::resize_file(path, whole);
    file_.open(path, std::ios::app | std::ios::binary);
}

std::vector<double> Journal::piece(const std::string& name, const std::function<std::vector<double>()>& measure) {
    const auto found = pieces_.find(name);
    if (found != pieces_.end()) return found->second;
    std::vector<double> values = measure();
    if (path_.empty()) return values;
    if (!file_.is_open()) begin();
    file_ << nlohmann::json({{kPiece, name}, {kValues, values}}).dump() << '\n' << std::flush;
    if (!file_)
        throw std::runtime_error("Cannot write " + path_.string() + " (is the disk full?). Make room, and run the same command again.");
    pieces_[name] = values;
    return values;
}

void Journal::begin() {
    write_file(path_, nlohmann::json({{kOf, identity_}}).dump() + "\n");
    file_.open(path_, std::ios::app | std::ios::binary);
}

void Journal::remove() {
    if (path_.empty()) return;
    file_.close();
    std::error_code error;
    std::filesystem::remove(path_, error);
}

}  // namespace jem
