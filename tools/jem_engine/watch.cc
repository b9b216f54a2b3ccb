// jem_engine watch
#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <deque>
#include <functional>
#include <system_error>

#include "data/input_error.h"
#include "data/load.h"
#include "engine/run/run_folder.h"
#include "tools/jem_engine/interrupt.h"
#include "tools/jem_engine/log_tail.h"
#include "tools/jem_engine/options.h"
#include "tools/jem_engine/run_view.h"
#include "tools/jem_engine/terminal.h"

namespace jem {
namespace {

using Process = LockOwner::Process;

struct WatchOptions {
    std::string folder;
    bool once = false;
    double interval = 1;  // seconds
};

// In seconds; below 0 where there is no such file.
double age_of(const std::filesystem::path& file) {
    std::error_code missing;
    const auto written = std::filesystem::last_write_time(file, missing);
    if (missing) return -1;
    return std::max(0.0, std::chrono::duration<double>(std::filesystem::file_time_type::clock::now() - written).count());
}

// The log says it once an epoch has ended; before that it is known of a data set with published sizes, unless the log contradicts: a set
// of the same form may hold fewer images.
int64_t iterations_per_epoch(const Settings& s, const LogView& log) {
    if (log.iterations_per_epoch() > 0) return log.iterations_per_epoch();
    const auto& sets = known_sets();
    const auto known = std::find_if(sets.begin(), sets.end(), [&](const KnownSet& set) { return set.name == s.data; });
    const int64_t images = known == sets.end() ? 0 : known->shape.num_train - s.n_valid;
    // A configuration may hold any numbers.
    const bool labels_fit = s.labels_per_class <= 0 || (s.labels_per_class <= images && s.num_classes > 0 && s.num_classes <= images);
    const int64_t guess = s.images_per_iteration() > 0 && images > 0 && labels_fit ? s.iterations_per_epoch(images) : 0;
    return log.fits(guess) ? guess : 0;
}

std::optional<int64_t> total_iterations(const Settings& s, const LogView& log) {
    if (s.iterations >= 0) return s.iterations;
    const int64_t per_epoch = iterations_per_epoch(s, log);
    int64_t total = 0;
    return per_epoch > 0 && !__builtin_mul_overflow(s.epochs, per_epoch, &total) ? std::optional(total) : std::nullopt;
}

RunView view_of(const RunFolder& folder, const Settings& s, const LogView& log, const LockOwner& owner) {
    RunView view;
    view.folder = folder.root().string();
    view.recipe = title_of(s);
    view.network = network_title(s);
    view.data = s.data;
    view.precision = s.precision;
    view.total = total_iterations(s, log);
    view.images = s.images_per_iteration();
    view.process = owner.process;
    view.holder = owner.words;
    view.line_age = age_of(folder.metrics());
    const double state = age_of(folder.state()), last = age_of(folder.last());
    view.checkpoint_age = state < 0 || last < 0 ? std::max(state, last) : std::min(state, last);
    return view;
}

// A block of lines at the end of a terminal, drawn over its own last state in one write, so that nothing flickers.
class Block {
public:
    void draw(const std::vector<std::string>& lines) {
        winsize size = {};
        const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 1 && size.ws_col > 0;
        const size_t columns = known ? size.ws_col : 80, rows = known ? size.ws_row : 24;
        const size_t shown = std::min(lines.size(), rows - 1);
        std::string out = "\r";
        if (lines_ > 0) out += fmt::format("\033[{}A", std::min(lines_, rows - 1));
        for (size_t i = 0; i < shown; ++i) out += cut_to(lines[i], columns) + "\033[K\n";
        out += "\033[J";
        std::fwrite(out.data(), 1, out.size(), stdout);
        std::fflush(stdout);
        lines_ = shown;
    }

private:
    size_t lines_ = 0;  // drawn last
};

// Elsewhere: the block once, then a line for what is new. A log that is read anew, as after a rollback, repeats lines; they are known by
// their text.
class Lines {
public:
    void saw(std::string_view line, const std::string& text) {
        const size_t hash = std::hash<std::string_view>{}(line);
        if (std::find(seen_.begin(), seen_.end(), hash) != seen_.end()) return;
        seen_.push_back(hash);
        if (seen_.size() > kSeen) seen_.pop_front();
        if (begun_) news_.push_back(text);
    }
    void print(const RunView& view, const LogView& log) {
        if (!begun_) news_ = text_of(view, log);
        const bool is_silent = silent(view, log);
        if (begun_ && is_silent && !silent_) news_.push_back(status_text(view, log));
        silent_ = is_silent;
        begun_ = true;
        for (const std::string& text : news_) std::printf("%s\n", text.c_str());
        std::fflush(stdout);
        news_.clear();
    }

private:
    static constexpr size_t kSeen = 4096;

    std::deque<size_t> seen_;
    std::vector<std::string> news_;
    bool begun_ = false, silent_ = false;
};

// The configuration changes when a run is resumed with other flags.
class Configuration {
public:
    explicit Configuration(const RunFolder& folder) : folder_(folder), settings_(folder.read_config()), written_(written()) {}
    const Settings& now() {
        const auto time = written();
        if (time == written_) return settings_;
        try {
            settings_ = folder_.read_config();
            written_ = time;
        } catch (const InputError&) {  // gone, or of a version to come: what was known is better than no watching
        }
        return settings_;
    }

private:
    std::filesystem::file_time_type written() const {
        std::error_code missing;
        return std::filesystem::last_write_time(folder_.config(), missing);
    }

    const RunFolder& folder_;
    Settings settings_;
    std::filesystem::file_time_type written_;
};

void wait(double seconds) {
    constexpr auto kSlice = std::chrono::milliseconds(100);  // an interrupt just before a wait is seen this late
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (!interrupted && std::chrono::steady_clock::now() < end) poll(nullptr, 0, static_cast<int>(kSlice.count()));
}

int watch(const WatchOptions& o) {
    if (o.folder.empty()) throw InputError("A folder is needed (the run to watch). Give the one that train has as --out.");
    const RunFolder folder{o.folder};
    if (!folder.has_config())
        throw InputError("There is no run in '" + o.folder + "' (it has no config.json). Give the folder that train has as --out.");
    Configuration configuration(folder);
    if (!o.once) catch_interrupts({.waiting = "Watching ends; the run is left alone.", .ended = ""});

    LogTail tail(folder.metrics());
    LogView log;
    Block block;
    Lines lines;
    const LogTail::Reader reader = {.line =
                                        [&](std::string_view line) {
                                            const LogView::Kind kind = log.take(line);
                                            if (kind == LogView::Kind::epoch) lines.saw(line, epoch_text(log.epoch()));
                                            if (kind == LogView::Kind::event) lines.saw(line, event_text(log.events().back()));
                                        },
                                    .anew = [&] { log.clear(); }};
    const bool over = !o.once && understands_escapes(STDOUT_FILENO);
    while (!interrupted) {
        const LockOwner owner = owner_of_lock(folder.root());  // first: what a process wrote before its end is then read as well
        tail.read(reader);
        const RunView view = view_of(folder, configuration.now(), log, owner);
        if (over)
            block.draw(text_of(view, log));
        else
            lines.print(view, log);
        const bool done = all_done(view, log);
        if (owner.process == Process::gone || (owner.process == Process::unknown && done)) {
            if (done)
                std::printf("Finished: all %lld iterations are done.\n", static_cast<long long>(log.iteration()));
            else
                std::printf("Stopped after iteration %lld. Go on with: jem_engine train --resume --out %s\n",
                            static_cast<long long>(log.iteration()), for_shell(o.folder).c_str());
            return kExitDone;
        }
        if (std::ferror(stdout) != 0 || o.once) return kExitDone;
        wait(o.interval);
    }
    return exit_code_of_interrupt();
}

}  // namespace

Command add_watch(CLI::App& app) {
    auto o = std::make_shared<WatchOptions>();
    app.add_option("dir", o->folder, "Folder of the run");
    app.add_flag("--once", o->once, "Say how the run is, and end");
    app.add_option("--interval", o->interval, "Seconds between two looks")->check(CLI::Range(0.1, 86400.0))->capture_default_str();
    return [o] { return watch(*o); };
}

}  // namespace jem
