// JSON of files that anybody may have written.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

namespace jem {

/// Levels of lists and objects in a file; the engine's own have three. The library copies, compares and prints a value by recursion.
constexpr int kMostJsonLevels = 32;

/// The value of a text; discarded (is_discarded()) where it is none, or has more levels.
template <class Json = nlohmann::json>
Json parse_json(std::string_view text) {
    struct TooDeep {};
    const typename Json::parser_callback_t check = [](int depth, typename Json::parse_event_t event, Json&) {
        const bool begins = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
        if (begins && depth >= kMostJsonLevels) throw TooDeep();
        return true;
    };
    try {
        return Json::parse(text, check, false);
    } catch (const TooDeep&) {
        return Json(Json::value_t::discarded);
    }
}

}  // namespace jem
