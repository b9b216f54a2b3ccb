// Several ranks of a job, each a process of its own: the emulated machine is one a process, and serialises its threads.
#pragma once

#include <functional>
#include <vector>

#include "engine/ranks/ranks.h"

namespace jem {

// Where a rank calls this, it ends without a word to the others, and its end is not a failure.
[[noreturn]] void die_as_planned();

enum class Races { none, planted };

// Runs body on `size` ranks: this program is started again, that often, for the test case that calls this, with torchrun's environment.
// At most once a test case. What a rank finds fails the test case here, with all that the rank printed; one that hangs is killed.
void on_processes(int size, const std::function<void(Ranks&)>& body, Races races = Races::none);

}  // namespace jem
