// JSON of files that anybody may have written.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

namespace jem {

/// Levels of lists and objects in a file; the engine's own have six. The library copies, compares and prints a value by recursion.
constexpr int kMostJsonLevels = 32;

/// Whether a text has more levels, as far as it is JSON. Seen before it is parsed: the library's own way to look on while it parses takes
/// quadratic time where a list has many objects.
inline bool has_too_many_json_levels(std::string_view text) {
    int levels = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string && c == '\\') ++i;
        if (c == '"') in_string = !in_string;
        if (in_string) continue;
        if ((c == '[' || c == '{') && ++levels > kMostJsonLevels) return true;
        if (c == ']' || c == '}') --levels;
    }
    return false;
}

/// The value of a text; discarded (is_discarded()) where it is none, or has more levels.
template <class Json = nlohmann::json>
Json parse_json(std::string_view text) {
    if (has_too_many_json_levels(text)) return Json(Json::value_t::discarded);
    return Json::parse(text, nullptr, false);
}

}  // namespace jem
