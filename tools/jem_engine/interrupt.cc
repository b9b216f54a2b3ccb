#include "tools/jem_engine/interrupt.h"

#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <ctime>

#include "tools/jem_engine/options.h"

namespace jem {

std::atomic<bool> interrupted{false};

namespace {

constexpr int kSignalBase = 128;            // of a shell's exit codes
constexpr int64_t kSameMoment = 250000000;  // nanoseconds: both a terminal and a launcher pass on one Ctrl-C

// All that the handler uses; set before it is installed.
std::string waiting_line, ended_line;
bool second_ends = true;
std::atomic<int> first_signal{0};
std::atomic<int64_t> first_at{0};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

int64_t now() {
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
}

// May be called in a signal's handler.
void say(const std::string& line) {
    if (write(STDERR_FILENO, line.data(), line.size()) < 0) return;  // nobody is there to read it
}

void on_signal(int number) {
    int none = 0;
    if (first_signal.compare_exchange_strong(none, number)) {
        first_at = now();
        interrupted = true;
        say(waiting_line);
        return;
    }
    if (!second_ends || (number != SIGINT && number != SIGTERM) || now() - first_at < kSameMoment) return;
    say(ended_line);
    _exit(kSignalBase + number);
}

void install(int number, void (*handler)(int)) {
    struct sigaction action {};
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    sigaction(number, &action, nullptr);
}

}  // namespace

void catch_interrupts(const InterruptWords& words, Processes processes) {
    const std::string start = isatty(STDERR_FILENO) != 0 ? "\n" : "";  // behind a progress bar
    waiting_line = start + words.waiting + "\n";
    ended_line = start + words.ended + "\n";
    second_ends = processes == Processes::one;
    for (const int number : {SIGINT, SIGTERM, SIGUSR1}) install(number, on_signal);
    struct sigaction hangup {};
    if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN) install(SIGHUP, on_signal);
}

int exit_code_of_interrupt() { return first_signal == 0 ? kExitInterrupted : kSignalBase + first_signal; }

void outlive_readers() { install(SIGPIPE, SIG_IGN); }

}  // namespace jem
