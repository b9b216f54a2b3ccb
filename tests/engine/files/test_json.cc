#include "engine/files/json.h"

#include <doctest/doctest.h>

#include <string>

#include "engine/files/messages.h"

namespace jem {
namespace {

std::string lists(size_t levels) { return std::string(levels, '[') + std::string(levels, ']'); }

}  // namespace

TEST_CASE("json_of_more_levels_than_any_file_of_ours_is_none") {
    CHECK(parse_json(R"({"a": [1, {"b": null}]})") == nlohmann::json({{"a", {1, {{"b", nullptr}}}}}));
    for (const char* text : {"", "{", "[1,]", "1e999", "\"\xff\""}) CHECK(parse_json(text).is_discarded());
    CHECK(parse_json(lists(kMostJsonLevels)).is_array());
    CHECK(parse_json(lists(kMostJsonLevels + 1)).is_discarded());
    CHECK(parse_json<nlohmann::ordered_json>(lists(1'000'000)).is_discarded());
    CHECK(parse_json(std::string(1'000'000, '[')).is_discarded());
    CHECK(parse_json(R"("[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"[{")").is_string());  // brackets in a text are none
    CHECK(parse_json("[" + lists(kMostJsonLevels - 1) + "," + lists(kMostJsonLevels - 1) + "]").size() == 2);
    CHECK(parse_json("[\"\\\\\"," + lists(kMostJsonLevels) + "]").is_discarded());
}

// In time that grows with the text: the file of a stranger must not hold the program up.
TEST_CASE("json_of_a_million_objects_in_a_list_is_read_in_a_moment") {
    std::string text = "[{}";
    for (int i = 1; i < 1'000'000; ++i) text += ",{}";
    CHECK(parse_json(text + "]").size() == 1'000'000);
}

TEST_CASE("a_text_for_a_terminal_cannot_steer_it") {
    CHECK(without_controls("a\x1b[2J\x07 b\r\x7f") == "a?[2J? b??");
    CHECK(without_controls("two\n\tlines \xc3\xa9") == "two\n\tlines \xc3\xa9");
}

}  // namespace jem
