// Names of an iteration's scalars: who writes one asks for its number by name, who reads it finds it so.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/state.h"

namespace jem {

class Scalars {
public:
    // The number of the scalar of this name, the next free one if there is none yet.
    int number(const std::string& name) {
        const auto found = std::find(names_.begin(), names_.end(), name);
        if (found == names_.end() && names_.size() == kNumScalars)
            throw std::logic_error("An iteration has more scalars than its state holds: kNumScalars is too small.");
        const auto at = found - names_.begin();
        if (found == names_.end()) names_.push_back(name);
        return static_cast<int>(at);
    }
    // In the order in which they were first asked for.
    const std::vector<std::string>& names() const { return names_; }

    bool has(const std::string& name) const { return std::find(names_.begin(), names_.end(), name) != names_.end(); }
    // 0 where nobody writes a scalar of this name.
    double value(const IterationState& state, const std::string& name, SamPass pass = SamPass::at_weights) const {
        const auto found = std::find(names_.begin(), names_.end(), name);
        return found == names_.end() ? 0 : state.scalars[found - names_.begin()][static_cast<int>(pass)];
    }

private:
    std::vector<std::string> names_;
};

}  // namespace jem
