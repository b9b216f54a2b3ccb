#include "tools/jem_engine/run_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "engine/files/json.h"
#include "tools/jem_engine/terminal.h"

namespace jem {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kEvents = 5;                     // remembered
constexpr size_t kTimes = 100;                    // lines whose distances count
constexpr double kSilentGaps = 5;                 // so many times as long as the longest of them
constexpr double kSilentSeconds = 30;             // but no less: an epoch ends with an evaluation and a checkpoint
constexpr size_t kMostClasses = 20;               // shown one by one
constexpr int64_t kMostCount = int64_t{1} << 53;  // what a double still counts

std::optional<double> number(const Json& line, const std::string& key) {
    const auto found = line.is_object() ? line.find(key) : line.end();
    if (found == line.end() || !found->is_number()) return {};
    const double value = found->get<double>();
    return std::isfinite(value) ? std::optional(value) : std::nullopt;
}

std::optional<int64_t> count(const Json& line, const std::string& key) {
    const auto found = line.is_object() ? line.find(key) : line.end();
    if (found == line.end() || !found->is_number_integer()) return {};
    const auto value = found->get<int64_t>();
    return value >= 0 && value <= kMostCount ? std::optional(value) : std::nullopt;
}

std::string word(const Json& line, const std::string& key) {
    const auto found = line.is_object() ? line.find(key) : line.end();
    return found != line.end() && found->is_string() ? printable(found->get<std::string>()) : "";
}

// A value of a line: its key, what it is called here, how it is written.
struct Shown {
    const char *key, *name, *format;
    double factor = 1;
};

const std::vector<Shown>& losses() {
    static const std::vector<Shown> shown = {{"loss", "loss", "{:.4f}"},
                                             {"loss_gen", "gen", "{:+.4f}"},
                                             {"loss_clf", "clf", "{:.4f}"},
                                             {"accuracy", "batch accuracy", "{:.1f} %", 100},
                                             {"lr", "lr", "{:.4g}"}};
    return shown;
}

const std::vector<Shown>& signs() {
    static const std::vector<Shown> shown = {{"f_pos", "f_pos", "{:.4g}"},         {"f_neg", "f_neg", "{:.4g}"},
                                             {"energy_gap", "gap", "{:+.4g}"},     {"grad_norm", "gradient", "{:.4g}"},
                                             {"sgld_grad_norm", "at x", "{:.4g}"}, {"clamped", "clamped", "{:.2g} %", 100},
                                             {"chain_way", "way", "{:.3g}"}};
    return shown;
}

const std::vector<Shown>& evaluations() {
    static const std::vector<Shown> shown = {{"test_accuracy", "test accuracy", "{:.2f} %", 100},
                                             {"valid_accuracy", "validation accuracy", "{:.2f} %", 100}};
    return shown;
}

const std::vector<Shown>& health() {
    static const std::vector<Shown> shown = {{"energy_real", "energy real", "{:.4g}"},
                                             {"energy_sampled", "sampled", "{:.4g}"},
                                             {"energy_noise", "noise", "{:.4g}"},
                                             {"buffer_age", "buffer age", "{:.4g}"}};
    return shown;
}

void add(std::string& text, const std::string& part) { text += (text.empty() || part.empty() ? "" : "  ") + part; }

std::string values_text(const Json& line, const std::vector<Shown>& values) {
    std::string text;
    for (const Shown& s : values)
        if (const auto value = number(line, s.key))
            add(text, fmt::format("{} {}", s.name, fmt::format(fmt::runtime(s.format), s.factor * *value)));
    return text;
}

// Numbers of a line that no list above knows, but for those that `but` holds, too.
std::string others_text(const Json& line, const Json& but) {
    static const std::set<std::string> known = [] {
        std::set<std::string> keys = {"iteration", "epoch", "time_s", "images_per_s"};
        for (const auto* values : {&losses(), &signs(), &evaluations(), &health()})
            for (const Shown& s : *values) keys.insert(s.key);
        return keys;
    }();
    std::string text;
    if (!line.is_object()) return text;
    for (const auto& item : line.items())
        if (const auto value = number(line, item.key());
            value && !known.contains(item.key()) && !(but.is_object() && but.contains(item.key())))
            add(text, fmt::format("{} {:.4g}", printable(item.key()), *value));
    return text;
}

// "buffer by class 10 9 11 %", of many classes the extremes.
std::string classes_text(const Json& line) {
    const auto found = line.is_object() ? line.find("buffer_classes") : line.end();
    if (found == line.end() || !found->is_array() || found->empty()) return "";
    std::vector<double> shares;
    for (const Json& share : *found) {
        if (!share.is_number()) return "";
        shares.push_back(100 * share.get<double>());
    }
    const auto least = std::min_element(shares.begin(), shares.end()), most = std::max_element(shares.begin(), shares.end());
    if (shares.size() > kMostClasses)
        return fmt::format("buffer by class {:.2g} % (class {}) to {:.2g} % (class {})", *least, least - shares.begin(), *most,
                           most - shares.begin());
    std::string text = "buffer by class";
    for (const double share : shares) text += fmt::format(" {:.0f}", share);
    return text + " %";
}

// f_pos - f_neg, where a log does not have it itself.
Json with_gap(Json line) {
    const auto f_pos = number(line, "f_pos"), f_neg = number(line, "f_neg");
    if (f_pos && f_neg && !line.contains("energy_gap")) line["energy_gap"] = *f_pos - *f_neg;
    return line;
}

std::string evaluation_text(const Json& line, const Json& log_line) {
    std::string text = values_text(line, evaluations());
    add(text, others_text(line, log_line));
    return text;
}

std::string health_text(const Json& line) {
    std::string text = values_text(line, health());
    add(text, classes_text(line));
    return text;
}

std::string progress_text(const RunView& view, const LogView& log) {
    const int64_t done = log.iteration();
    std::string text = view.total ? fmt::format("iteration {}/{}", done, *view.total) : fmt::format("iteration {}", done);
    if (const auto epoch = count(log.last(), "epoch")) add(text, fmt::format("epoch {}", *epoch));
    const auto rate = number(log.last(), "images_per_s");
    if (rate) add(text, fmt::format("{:.4g} images/s", *rate));
    // as train reckons it: the iterations that are left, at the rate of the last ones
    if (rate && *rate > 0 && view.total && view.process != RunView::Process::gone && !all_done(view, log))
        add(text, "ETA " + duration_text(static_cast<double>(*view.total - done) * static_cast<double>(view.images) / *rate));
    return text;
}

}  // namespace

LogView::Kind LogView::take(std::string_view text) {
    Json line = parse_json<Json>(text);
    if (!count(line, "iteration")) return Kind::none;
    if (!word(line, "event").empty()) {
        events_.push_back(std::move(line));
        if (events_.size() > kEvents) events_.pop_front();
        return Kind::event;
    }
    if (const auto time = number(line, "time_s")) {
        times_.push_back(*time);
        if (times_.size() > kTimes) times_.pop_front();
    }
    last_ = std::move(line);
    if (values_text(last_, evaluations()).empty()) return Kind::iteration;
    epoch_ = last_;
    return Kind::epoch;
}

int64_t LogView::iteration() const { return count(last_, "iteration").value_or(0); }

int64_t LogView::iterations_per_epoch() const {
    const auto iteration = count(epoch_, "iteration"), epoch = count(epoch_, "epoch");
    return iteration && epoch ? *iteration / (*epoch + 1) : 0;
}

bool LogView::fits(int64_t per_epoch) const {
    if (last_.is_null()) return per_epoch > 0;
    return per_epoch > 0 && count(last_, "epoch") == (iteration() - 1) / per_epoch;
}

double LogView::usual_gap() const {
    double longest = 0;
    for (size_t i = 1; i < times_.size(); ++i) longest = std::max(longest, times_[i] - times_[i - 1]);
    return longest;
}

bool all_done(const RunView& view, const LogView& log) { return view.total && log.iteration() >= *view.total; }

bool silent(const RunView& view, const LogView& log) {
    return view.process != RunView::Process::gone && !all_done(view, log) && log.usual_gap() > 0 &&
           view.line_age > std::max(kSilentSeconds, kSilentGaps * log.usual_gap());
}

std::string status_text(const RunView& view, const LogView& log) {
    std::string text;
    switch (view.process) {
        case RunView::Process::gone:
            return all_done(view, log) ? "finished" : "stopped: no process trains here";
        case RunView::Process::running:
            text = "running" + (view.holder.empty() ? "" : " (" + printable(view.holder) + ")");
            break;
        case RunView::Process::unknown:
            text = "running or not (the folder's lock cannot be asked)";
            break;
    }
    if (all_done(view, log)) return text + ", all iterations are done";
    if (log.last().is_null()) return text + ", no line in the log yet";
    if (silent(view, log))
        text += fmt::format(", silent since {} (lines used to take {})", duration_text(view.line_age), duration_text(log.usual_gap()));
    return text;
}

std::vector<std::string> text_of(const RunView& view, const LogView& log) {
    std::vector<std::string> lines;
    const auto put = [&](const std::string& line) {
        if (!line.empty()) lines.push_back(line);
    };
    put(printable(fmt::format("{}: {}, {}, {}, {}", view.folder, view.recipe, view.network, view.data, view.precision)));
    put(status_text(view, log));
    if (!log.last().is_null()) {
        const Json last = with_gap(log.last());
        put(progress_text(view, log));
        put(values_text(last, losses()));
        put(values_text(last, signs()));
        // what comes with an evaluation stands below
        if (log.last() != log.epoch()) put(others_text(last, {}));
    }
    if (!log.epoch().is_null()) {
        // an epoch's line alone says what it has beyond others
        const Json others = log.last() != log.epoch() ? log.last() : Json();
        put(fmt::format("epoch {}: {}", count(log.epoch(), "epoch").value_or(0), evaluation_text(log.epoch(), others)));
        put(health_text(log.epoch()));
    }
    for (const Json& event : log.events()) put(event_text(event));
    if (view.checkpoint_age >= 0) put("last checkpoint " + duration_text(view.checkpoint_age) + " ago");
    return lines;
}

std::string epoch_text(const Json& line) {
    const Json values = with_gap(line);
    std::string text;
    for (const std::string& part :
         {evaluation_text(values, {}), values_text(values, losses()), values_text(values, signs()), health_text(values)})
        add(text, part);
    return fmt::format("epoch {}, iteration {}: {}", count(line, "epoch").value_or(0), count(line, "iteration").value_or(0), text);
}

std::string event_text(const Json& line) {
    const int64_t iteration = count(line, "iteration").value_or(0);
    const std::string event = word(line, "event");
    const auto from = count(line, "from");
    std::string text = event == "rollback" && from ? fmt::format("iteration {}: rolled back to {}", *from, iteration)
                                                   : fmt::format("iteration {}: {}", iteration, event);
    if (const std::string reason = word(line, "reason"); !reason.empty()) text += " (" + reason + ")";
    if (const std::string measure = word(line, "measure"); !measure.empty()) text += ", " + measure;
    if (const auto attempt = count(line, "attempt")) text += fmt::format(", attempt {}", *attempt);
    return text;
}

}  // namespace jem
