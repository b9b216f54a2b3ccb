// Bugs that tests plant, and what the emulated machine says of them.
#pragma once

#include <doctest/doctest.h>

#include <exception>
#include <functional>
#include <string>

#include "tests/emulation/control.h"

namespace jem {

// What the bug's error says; "" if there was none.
inline std::string report_of(const std::function<void()>& bug) {
    cuda_on_host::reset({});
    std::string error;
    try {
        bug();
    } catch (const std::exception& e) {
        error = e.what();
    }
    cuda_on_host::reset({});
    return error;
}
inline void check_caught(const char* text, const std::function<void()>& bug) {
    const std::string error = report_of(bug);
    CHECK_MESSAGE(error.find(text) != std::string::npos, "wanted: ", std::string(text), "; got: ", error);
}

}  // namespace jem
