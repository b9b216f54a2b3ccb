#pragma once

#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <vector>

#include "data/input_error.h"

namespace jem {

/// The text of the InputError that the call throws; fails the test if it throws none.
inline std::string error_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const InputError& error) {
        return error.what();
    }
    FAIL("expected an InputError, got none");
    return "";
}

inline void check_contains(const std::string& text, const std::vector<std::string>& parts) {
    for (const std::string& part : parts) {
        INFO("text: " << text);
        INFO("expected in it: " << part);
        CHECK(text.find(part) != std::string::npos);
    }
}

}  // namespace jem
