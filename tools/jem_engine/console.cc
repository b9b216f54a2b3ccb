#include "tools/jem_engine/console.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "engine/files/messages.h"
#include "tools/jem_engine/sheet.h"
#include "tools/jem_engine/terminal.h"

namespace jem {
namespace {

using Clock = std::chrono::steady_clock;
constexpr double kBarSeconds = 0.2;  // between redraws on a terminal
constexpr double kLineSeconds = 15;  // between lines elsewhere
constexpr double kQuietStart = 2;    // what takes less needs no progress
constexpr int kBarWidth = 24;
constexpr int kSheetColumns = 10;
constexpr int kSheetPixels = 64;  // each image is enlarged to about so many

double since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

}  // namespace

Console::Console(bool quiet) : quiet_(quiet), terminal_(understands_escapes(STDERR_FILENO)) {}

Console::~Console() { end_bar(); }

void Console::end_bar() {
    if (bar_shown_) std::fputc('\n', stderr);
    bar_shown_ = false;
}

void Console::message(const std::string& text) {
    if (!quiet_) tell(text);
}

void Console::warning(const std::string& text) { tell("warning: " + text); }

void Console::tell(const std::string& text) {
    end_bar();
    std::fprintf(stderr, "%s\n", without_controls(text).c_str());
    std::fflush(stderr);
}

void Console::show(const std::string& text, int64_t done, int64_t total, double per_second, bool force) {
    if (quiet_ || (!force && since(last_shown_) < (terminal_ ? kBarSeconds : kLineSeconds))) return;
    last_shown_ = Clock::now();
    const double eta = per_second > 0 ? static_cast<double>(total - done) / per_second : NAN;
    const std::string status = fmt::format("{}/{}  {:.2f}/s  ETA {}  {}", done, total, per_second, duration_text(eta), text);
    if (!terminal_) {
        std::fprintf(stderr, "%s %s\n", what_.c_str(), status.c_str());
    } else {
        const int filled = total > 0 ? static_cast<int>(done * kBarWidth / total) : kBarWidth;
        std::fprintf(stderr, "\r\033[K%s [%s%s] %s", what_.c_str(), std::string(static_cast<size_t>(filled), '#').c_str(),
                     std::string(static_cast<size_t>(kBarWidth - filled), '.').c_str(), status.c_str());
        bar_shown_ = true;
    }
    std::fflush(stderr);
}

void Console::progress(const std::string& what, int64_t done, int64_t total) {
    if (what != what_) {
        end_bar();
        what_ = what;
        started_ = last_shown_ = Clock::now();
        started_at_ = done;
        return;
    }
    if (since(started_) < kQuietStart) return;
    const double rate = static_cast<double>(done - started_at_) / std::max(1e-9, since(started_));
    show("", done, total, rate, done == total);
    if (done == total) {
        end_bar();
        what_.clear();
    }
}

void Console::iteration(const Iteration& it) {
    if (what_ != "Training") {
        end_bar();
        what_ = "Training";
        last_shown_ = {};
    }
    show(fmt::format("epoch {}  loss {:.4f}  gen {:+.4f}  clf {:.4f}  accuracy {:.1f} %  lr {:.4g}", it.epoch, it.loss, it.loss_gen,
                     it.loss_clf, 100 * it.accuracy, it.learning_rate),
         it.done, it.total, it.per_second, it.done == it.total);
}

void Console::set_image_shape(int height, int width, int channels) {
    height_ = height;
    width_ = width;
    channels_ = channels;
}

void Console::samples(const std::filesystem::path& path, const std::vector<float>& images, int64_t count) {
    write_sheet(path, images,
                {.count = static_cast<int>(count),
                 .height = height_,
                 .width = width_,
                 .channels = channels_,
                 .columns = kSheetColumns,
                 .scale = std::max(1, kSheetPixels / height_)});
}

}  // namespace jem
