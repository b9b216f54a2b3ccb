// In place of mpi_ranks.cc where CMake found no MPI.
#include "engine/ranks/mpi/mpi_ranks.h"

namespace jem {

std::string missing_mpi() {
    return "MPI was not found when this was built. Run tools/setup, or install libopenmpi-dev and openmpi-bin, and build again";
}

std::string mpi_version() { return ""; }

std::unique_ptr<Ranks> make_mpi_ranks() {
    throw InputError("mpirun started several ranks, but this build knows no MPI. " + missing_mpi() + "; or start one process.");
}

}  // namespace jem
