#include "tools/jem_engine/interrupt.h"

#include <csignal>
#include <cstdlib>

#include "tools/jem_engine/options.h"

namespace jem {

std::atomic<bool> interrupted{false};

namespace {

void on_signal(int) {
    if (interrupted.exchange(true)) std::_Exit(kExitFailed);
}

void on_signal_of_rank(int) { interrupted = true; }

}  // namespace

void catch_interrupts(Processes processes) {
    std::signal(SIGINT, processes == Processes::one ? on_signal : on_signal_of_rank);
    std::signal(SIGTERM, processes == Processes::one ? on_signal : on_signal_of_rank);
    if (processes == Processes::ranks) std::signal(SIGUSR1, on_signal_of_rank);
}

}  // namespace jem
