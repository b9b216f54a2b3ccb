// Ctrl-C and SIGTERM, for commands that stop at a place where nothing is lost.
#pragma once

#include <atomic>

namespace jem {

// Whether somebody asked to stop, from catch_interrupts() on.
extern std::atomic<bool> interrupted;

// The first signal asks; the second ends the process at once, unless it is one of several ranks: mpirun may pass on a signal that the
// terminal has sent already, and ends for good those that do not end in time.
enum class Processes { one, ranks };
void catch_interrupts(Processes processes = Processes::one);

}  // namespace jem
