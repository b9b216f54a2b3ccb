// Progress on stderr: a bar on a terminal, plain lines elsewhere.
#pragma once

#include <chrono>
#include <string>

#include "engine/training/trainer.h"

namespace jem {

class Console final : public TrainingObserver {
public:
    explicit Console(bool quiet);
    ~Console() override;

    void message(const std::string& text) override;
    void warning(const std::string& text) override;
    void tell(const std::string& text);  // quiet or not
    void progress(const std::string& what, int64_t done, int64_t total) override;
    void iteration(const Iteration& it) override;
    void samples(const std::filesystem::path& path, const std::vector<float>& images, int64_t count) override;
    // Size of the images that samples() will be given.
    void set_image_shape(int height, int width, int channels);

private:
    void show(const std::string& text, int64_t done, int64_t total, double per_second, bool force);
    void end_bar();

    bool quiet_, terminal_;  // terminal_: lines may be drawn over
    bool bar_shown_ = false;
    std::string what_;
    int64_t started_at_ = 0;  // `done` when this activity began
    std::chrono::steady_clock::time_point started_, last_shown_;
    int height_ = 0, width_ = 0, channels_ = 0;
};

}  // namespace jem
