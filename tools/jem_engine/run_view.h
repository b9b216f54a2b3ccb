// What a run's log says, in lines for a person.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/run/run_lock.h"

namespace jem {

/// What is remembered of metrics.jsonl: its last line, the last one of an epoch, the last events.
class LogView {
public:
    enum class Kind { none, iteration, epoch, event };  // none: no line of a log; epoch: with an evaluation
    Kind take(std::string_view line);
    void clear() { *this = {}; }

    const nlohmann::ordered_json& last() const { return last_; }    // null: there was none
    const nlohmann::ordered_json& epoch() const { return epoch_; }  // likewise
    const std::deque<nlohmann::ordered_json>& events() const { return events_; }
    int64_t iteration() const;  // of the last line, 0 before the first
    /// As the last epoch's line has it; 0 before the first.
    int64_t iterations_per_epoch() const;
    /// Whether the last line, if there is one, may be of a run with so many.
    bool fits(int64_t per_epoch) const;
    /// The longest time between two of the last lines, in seconds; 0 where there are no two.
    double usual_gap() const;

private:
    nlohmann::ordered_json last_, epoch_;
    std::deque<nlohmann::ordered_json> events_;
    std::deque<double> times_;  // of the last lines, seconds
};

/// All else that is known of a run.
struct RunView {
    std::string folder, recipe, network, data, precision;
    std::optional<int64_t> total;  // iterations
    int64_t images = 1;            // of an iteration, as images_per_s counts them
    using Process = LockOwner::Process;
    Process process = Process::unknown;
    std::string holder;                         // who runs it, in words; may be empty
    double line_age = -1, checkpoint_age = -1;  // seconds; below 0: there is none
};

/// All iterations are in the log; the process may still be writing its last checkpoint.
bool all_done(const RunView& view, const LogView& log);
/// Running, and no line came for much longer than lines used to take.
bool silent(const RunView& view, const LogView& log);

/// "running (process 12 on host), silent since 1:30 (lines used to take 0:02)".
std::string status_text(const RunView& view, const LogView& log);
/// A block of some ten lines. Values that the log lacks are left out.
std::vector<std::string> text_of(const RunView& view, const LogView& log);
/// A line each, for the line of an epoch and of an event.
std::string epoch_text(const nlohmann::ordered_json& line);
std::string event_text(const nlohmann::ordered_json& line);

}  // namespace jem
