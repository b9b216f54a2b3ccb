// The queue of a device whose memory is the host's: runs an op at once, notes it for replay, or only counts it.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "engine/device/device.h"

namespace jem {

class HostStream {
public:
    enum class Mode { eager, capture, dry };
    struct Entry {
        const char* label;
        Work work;
        std::function<void()> run;
    };

    // label: a string literal, kept by address.
    template <class Run>
    void submit(const char* label, Work work, Run&& run) {
        ++launches_;
        switch (mode_) {
            case Mode::eager:
                timed(label, work, run);
                break;
            case Mode::capture:
                recorded_.push_back({label, work, std::forward<Run>(run)});
                break;
            case Mode::dry:
                add(label, work, 0);
                break;
        }
    }

    void replay(const std::vector<Entry>& entries) {
        for (const Entry& entry : entries) timed(entry.label, entry.work, entry.run);
        launches_ += static_cast<int64_t>(entries.size());
    }

    Mode mode() const { return mode_; }
    void set_mode(Mode mode) { mode_ = mode; }
    int64_t launches() const { return launches_; }
    std::vector<Entry> take_recorded() { return std::exchange(recorded_, {}); }
    void set_profiling(bool on) { profiling_ = on; }
    WorkReport take_report() { return std::exchange(report_, {}); }

private:
    template <class Run>
    void timed(const char* label, const Work& work, Run&& run) {
        if (!profiling_) return run();
        const auto start = std::chrono::steady_clock::now();
        run();
        add(label, work, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    void add(const char* label, const Work& work, double seconds) { report_[label].add(work, seconds); }

    Mode mode_ = Mode::eager;
    bool profiling_ = false;
    int64_t launches_ = 0;
    std::vector<Entry> recorded_;
    WorkReport report_;
};

}  // namespace jem
