// What the engine tells while this lives.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "engine/files/messages.h"

namespace jem {

class Told {
public:
    Told() {
        set_listener([this](const std::string& text) { lines.push_back(text); });
    }
    Told(const Told&) = delete;  // the listener is one
    Told& operator=(const Told&) = delete;
    ~Told() { set_listener({}); }
    int with(const std::string& part) const {
        return static_cast<int>(
            std::count_if(lines.begin(), lines.end(), [&](const auto& l) { return l.find(part) != std::string::npos; }));
    }
    std::vector<std::string> lines;
};

}  // namespace jem
