// Told of every access by the calls that -fsanitize=thread puts into the code: this build links these functions in place of
// ThreadSanitizer's. Only the code under test is compiled so; the emulation's own accesses are not seen.
#include "tests/emulation/written.h"

#include "tests/emulation/control.h"
#include "tests/emulation/executor.h"

namespace cuda_on_host {

std::string describe_unwritten(const void* address) { return "bytes that nobody wrote, in " + describe(address); }

#ifndef CUDA_ON_HOST_INIT
bool checks_reads() { return false; }
#endif

}  // namespace cuda_on_host
