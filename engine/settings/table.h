// The table of settings. From a row come a setting's flag, its line in --help and docs/settings.md, its key in config.json, and what values
// it may have: a new hyper-parameter is a member of Settings and a row here.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/settings/settings.h"

namespace jem {

struct Setting {
    // The commands that take the flag; each kind takes those above it as well.
    enum class Use {
        command,  // the command has a flag of its own for it (--recipe, --seed)
        network,  // what a bare checkpoint does not say itself
        sampling,
        training,
    };
    enum class Form { value, on_off, list };

    std::string key, group;
    Use use = Use::training;
    Form form = Form::value;
    std::string help;
    std::string values;                // "1 to 32", "sgd|adam"
    std::string note;                  // what else is to be said of the default
    std::vector<std::string> aliases;  // flags: the names of the authors' scripts
    std::function<nlohmann::ordered_json(const Settings&)> get;
    std::function<void(Settings&, const nlohmann::json&)> set;  // throws nlohmann's exceptions for another type
    // From the command line, `flag` being the name it was given by: InputError for a text that is no such value, or one out of range.
    std::function<void(Settings&, const std::string& flag, const std::string& text)> parse;
    std::function<void(const Settings&)> check;  // InputError for a value out of range

    std::string flag() const;          // "--lr-decay"
    std::string default_text() const;  // "0.1; softmax 0"
};

const std::vector<Setting>& settings_table();

// Whether a JSON value has a setting at all: other programs write a "config" of their own into their files.
bool holds_settings(const nlohmann::json& json);

// The table as a page of Markdown.
std::string settings_page();

// What stands between the commas of a text; an empty text is one empty part.
std::vector<std::string> comma_parts(const std::string& text);

// The whole number that a text is, decimal digits alone; false for anything else.
bool read_whole_number(const std::string& text, int64_t& value);
bool read_whole_number(const std::string& text, uint64_t& value);

}  // namespace jem
