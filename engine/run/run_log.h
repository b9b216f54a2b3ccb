// The log of a run, metrics.jsonl, where writing may fail for a while: lines wait in memory and are written later.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/run/run_folder.h"

namespace jem {

class RunLog {
public:
    // tell: of trouble when it begins and when it is over.
    RunLog(const RunFolder& folder, std::function<void(const std::string&)> tell) : folder_(folder), tell_(std::move(tell)) {}

    void append(const nlohmann::ordered_json& line);
    // As RunFolder::cut_metrics, of lines that wait as well.
    void cut(int64_t last_iteration, uint64_t attempt);
    // Tries again to write what waits; whether nothing waits any more.
    bool flush();

private:
    struct Cut {
        int64_t last_iteration;
        uint64_t attempt;
    };
    const RunFolder& folder_;
    std::function<void(const std::string&)> tell_;
    std::optional<Cut> cut_;            // that waits, and comes before the lines
    std::vector<std::string> waiting_;  // whole lines
    bool told_ = false;
};

}  // namespace jem
