#include "engine/run/run_log.h"

#include <exception>

namespace jem {

void RunLog::append(const nlohmann::ordered_json& line) {
    waiting_.push_back(line.dump() + "\n");
    flush();
}

void RunLog::cut(int64_t last_iteration, uint64_t attempt) {
    std::erase_if(waiting_, [&](const std::string& line) { return !RunFolder::stays(line, last_iteration, attempt); });
    if (cut_ && cut_->last_iteration < last_iteration) last_iteration = cut_->last_iteration;
    cut_ = Cut{last_iteration, attempt};
    flush();
}

bool RunLog::flush() {
    if (!cut_ && waiting_.empty()) return true;
    try {
        if (cut_) folder_.cut_metrics(cut_->last_iteration, cut_->attempt);
        cut_.reset();
        std::string lines;
        for (const std::string& line : waiting_) lines += line;
        folder_.append_metrics(lines);
        if (told_) tell_("the log can be written again: " + std::to_string(waiting_.size()) + " lines that waited are in it.");
        waiting_.clear();
        told_ = false;
    } catch (const std::exception& e) {
        if (!told_) tell_(std::string("the log waits: ") + e.what() + " The run goes on, and its lines are written later.");
        told_ = true;
    }
    return waiting_.empty() && !cut_;
}

}  // namespace jem
