// What was the fastest, remembered in a file from run to run: timing takes seconds, and only the same engines repeat a
// run bit for bit.
#pragma once

#include <map>
#include <optional>
#include <string>

namespace jem {

struct PlanChoice {
    std::string choice;  // an engine (ConvGraph::engine), or what a convolution does of the ops around it (fusion_name)
    double seconds = 0;  // as it was timed
    auto operator<=>(const PlanChoice&) const = default;
};

class PlanCache {
public:
    // file: JSON, need not exist; empty: nothing is remembered beyond this object. One that is damaged counts as empty, and
    // warning() says so.
    explicit PlanCache(const std::string& file);

    // key: all that the choice depends on, readable.
    std::optional<PlanChoice> find(const std::string& key) const;
    void remember(const std::string& key, const PlanChoice& choice);
    // Adds what is new to what the file holds by now, in one rename: a reader sees the old file or the new one. False, and
    // warning(), where it cannot be written; nothing depends on it.
    bool save();

    const std::string& warning() const { return warning_; }

private:
    using Entries = std::map<std::string, PlanChoice>;
    Entries read();

    std::string file_, warning_;
    Entries entries_, fresh_;
};

}  // namespace jem
