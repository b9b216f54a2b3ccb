// How an evaluation ends before its end.
#pragma once

#include <stdexcept>

namespace jem {

// Somebody asked to stop.
struct Interrupted : std::runtime_error {
    Interrupted() : std::runtime_error("Interrupted") {}
};

}  // namespace jem
