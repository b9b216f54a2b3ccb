// Signals that ask a command to stop at a place where nothing is lost: Ctrl-C (SIGINT), SIGTERM, SIGHUP (the terminal or the connection is
// gone), SIGUSR1 (what batch systems send some time before they end a job).
#pragma once

#include <atomic>
#include <string>

namespace jem {

// Whether somebody asked to stop, from catch_interrupts() on.
extern std::atomic<bool> interrupted;

// What a person is told at once, by the signal's handler.
struct InterruptWords {
    std::string waiting;  // what is being waited for; and what one more interrupt would lose
    std::string ended;    // after that one
};

// A second SIGINT or SIGTERM, not at the same moment, ends the process at once, unless it is one of several ranks: mpirun may pass on a
// signal that the terminal has sent already, and ends for good those that do not end in time. SIGHUP stays ignored where it was (nohup).
enum class Processes { one, ranks };
void catch_interrupts(const InterruptWords& words, Processes processes = Processes::one);

// As shells report it: 128 and the signal's number, thus 130 after Ctrl-C; that as well where another rank was asked.
int exit_code_of_interrupt();

// From here on writing to a pipe that nobody reads any more fails, and ends nothing.
void outlive_readers();

}  // namespace jem
