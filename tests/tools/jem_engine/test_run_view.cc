#include "tools/jem_engine/run_view.h"

#include <doctest/doctest.h>

#include <string>

#include "tools/jem_engine/terminal.h"

namespace jem {
namespace {

constexpr const char* kLine =
    R"({"iteration":7,"epoch":1,"time_s":3.5,"images_per_s":32.0,"lr":0.1,"loss":2.5,"loss_gen":-0.01,"f_pos":2.25,"f_neg":2.5,"loss_clf":2.51,"accuracy":0.5,"grad_norm":1.5})";
constexpr const char* kEpoch =
    R"({"iteration":4,"epoch":0,"time_s":2.0,"images_per_s":32.0,"loss":2.5,"energy_gap":0.75,"clamped":0.125,"chain_way":3.0,"test_accuracy":0.375,"test_nll":2.125,"energy_real":-2.5,"energy_noise":1.5,"buffer_age":12.0,"buffer_classes":[0.25,0.75]})";

RunView view() {
    RunView v;
    v.folder = "runs/a";
    v.recipe = "sada-jem";
    v.network = "WRN-10-1";
    v.data = "mnist";
    v.precision = "f32";
    v.total = 27;
    v.images = 16;
    v.process = RunView::Process::running;
    v.line_age = 1;
    return v;
}

std::string joined(const RunView& v, const LogView& log) {
    std::string all;
    for (const std::string& line : text_of(v, log)) all += line + "\n";
    return all;
}

bool has(const std::string& text, const std::string& part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
    return text.find(part) != std::string::npos;
}

bool lacks(const std::string& text, const std::string& part) {
    INFO(text);
    CHECK(text.find(part) == std::string::npos);
    return text.find(part) == std::string::npos;
}

}  // namespace

TEST_CASE("run_view_shows_what_the_log_has_and_leaves_out_what_it_lacks") {
    LogView log;
    CHECK(log.take(kEpoch) == LogView::Kind::epoch);
    CHECK(log.take(kLine) == LogView::Kind::iteration);
    const std::string text = joined(view(), log);
    // 20 iterations of 16 images at 32 a second
    for (const char* part :
         {"runs/a: sada-jem, WRN-10-1, mnist, f32\n", "running\n", "iteration 7/27  epoch 1  32 images/s  ETA 0:10\n",
          "loss 2.5000  gen -0.0100  clf 2.5100  batch accuracy 50.0 %  lr 0.1\n", "gap -0.25  gradient 1.5\n",
          "epoch 0: test accuracy 37.50 %  test_nll 2.125\n", "energy real -2.5  noise 1.5  buffer age 12  buffer by class 25 75 %\n"})
        has(text, part);
    for (const char* part : {"sampled", "at x", "clamped", "way", "checkpoint", "silent"}) lacks(text, part);
    const std::string line = epoch_text(log.epoch());
    for (const char* part : {"epoch 0, iteration 4: test accuracy 37.50 %", "gap +0.75", "clamped 12 %", "way 3", "buffer age 12"})
        has(line, part);
}

TEST_CASE("run_view_tells_running_finished_stopped_and_silent_apart") {
    LogView log;
    RunView v = view();
    has(status_text(v, log), "running, no line in the log yet");
    log.take(kEpoch);
    log.take(kLine);
    v.holder = "process 12 on here";
    CHECK(status_text(v, log) == "running (process 12 on here)");
    v.line_age = 29;
    CHECK(!silent(v, log));
    v.line_age = 100;  // lines were 1.5 s apart
    CHECK(status_text(v, log) == "running (process 12 on here), silent since 1:40 (lines used to take 0:02)");
    log.take(R"({"iteration":8,"epoch":1,"time_s":33.5})");
    CHECK(!silent(v, log));
    v.process = RunView::Process::gone;
    has(status_text(v, log), "stopped");
    lacks(joined(v, log), "ETA");
    v.total = 8;
    CHECK(status_text(v, log) == "finished");
    v.process = RunView::Process::running;
    has(status_text(v, log), "all iterations are done");
    CHECK(!silent(v, log));
    v.total = {};
    has(joined(v, log), "iteration 8  epoch 1\n");
}

TEST_CASE("run_view_tells_events_and_keeps_the_last_of_them") {
    LogView log;
    CHECK(log.take(R"({"iteration":900,"event":"rollback","from":950,"reason":"not finite","measure":"half the rate","attempt":2})") ==
          LogView::Kind::event);
    CHECK(event_text(log.events().back()) == "iteration 950: rolled back to 900 (not finite), half the rate, attempt 2");
    CHECK(log.take(R"({"iteration":3,"event":"another engine"})") == LogView::Kind::event);
    CHECK(event_text(log.events().back()) == "iteration 3: another engine");
    CHECK(log.last().is_null());
    for (int i = 0; i < 1000; ++i) log.take(R"({"iteration":4,"event":"again"})");
    CHECK(log.events().size() <= 10);
}

TEST_CASE("run_log_takes_only_what_is_a_line_of_a_log") {
    LogView log;
    for (const char* line : {"", "{", R"({"iteration":)", "[1]", "7", R"({"iteration":-1})", R"({"iteration":1.5})", R"({"iteration":"x"})",
                             R"({"iteration":18446744073709551615})", "{\"iteration\":1,\"event\":\"\xff\"}"})
        CHECK(log.take(line) == LogView::Kind::none);
    CHECK(log.last().is_null());
    // values of another kind than they should be count as missing
    CHECK(log.take(R"({"iteration":9007199254740992,"epoch":"x","loss":[],"test_accuracy":{},"time_s":null,"buffer_classes":7})") ==
          LogView::Kind::iteration);
    CHECK(log.take(R"({"iteration":5,"epoch":[],"test_accuracy":0.5,"buffer_classes":[1,"x"],"event":4})") == LogView::Kind::epoch);
    CHECK(log.iterations_per_epoch() == 0);
    CHECK(!log.fits(5));
    lacks(joined(view(), log), "by class");
}

TEST_CASE("run_log_knows_the_iterations_of_an_epoch_from_the_end_of_one") {
    LogView log;
    CHECK(log.fits(100));
    log.take(kLine);
    CHECK(log.iterations_per_epoch() == 0);
    CHECK(log.fits(4));   // iteration 7 is of epoch 1
    CHECK(!log.fits(7));  // it would be of epoch 0
    log.take(R"({"iteration":12,"epoch":2,"valid_accuracy":0.5})");
    CHECK(log.iterations_per_epoch() == 4);
}

TEST_CASE("text_from_elsewhere_cannot_steer_a_terminal") {
    CHECK(printable("a\033[2Jb\r\n\x7f") == "a?[2Jb???");
    CHECK(printable("gr\xc3\xbc\xc3\x9f \xc2\x9b"
                    "2J") == "gr\xc3\xbc\xc3\x9f ??2J");
    LogView log;
    log.take(R"({"iteration":3,"event":"\u001b]0;x\u0007"})");
    log.take(R"({"iteration":3,"\u001b[31m":1})");
    RunView v = view();
    v.folder = "\033c";
    v.holder = "\033c";
    const std::string text = joined(v, log);
    lacks(text, "\033");
    lacks(text, "\007");
    CHECK(cut_to("gr\xc3\xbc\xc3\x9f", 3) == "gr\xc3\xbc");
    CHECK(cut_to("abc", 3) == "abc");
    CHECK(duration_text(3661) == "1:01:01");
    CHECK(duration_text(-1) == "-");
}

}  // namespace jem
