// How fast iterations go: over a sliding window, without the pauses between them (evaluation, checkpoints).
#pragma once

#include <algorithm>
#include <chrono>
#include <deque>
#include <iterator>

namespace jem {

class WorkRate {
public:
    using Time = std::chrono::steady_clock::time_point;

    // Work begins, or goes on after a pause.
    void resume(Time now) { last_ = now; }
    // An iteration is done since.
    void done(Time now) {
        const double seconds = std::chrono::duration<double>(now - last_).count();
        last_ = now;
        window_.push_back(seconds);
        sum_ += seconds;
        while (std::ssize(window_) > kMost || (std::ssize(window_) > kLeast && sum_ - window_.front() >= kLeastSeconds)) {
            sum_ -= window_.front();
            window_.pop_front();
        }
    }
    // Iterations a second; 0 before the first.
    double per_second() const { return window_.empty() ? 0 : static_cast<double>(window_.size()) / std::max(1e-9, sum_); }

private:
    static constexpr std::ptrdiff_t kLeast = 20, kMost = 10000;  // iterations
    static constexpr double kLeastSeconds = 2;

    Time last_;
    std::deque<double> window_;
    double sum_ = 0;
};

}  // namespace jem
