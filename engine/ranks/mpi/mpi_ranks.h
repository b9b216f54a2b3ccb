// Ranks that mpirun started.
#pragma once

#include "engine/ranks/ranks.h"

namespace jem {

// Initialises MPI. InputError where this build has none.
std::unique_ptr<Ranks> make_mpi_ranks();

}  // namespace jem
