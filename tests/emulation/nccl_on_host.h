// What a test may do to the emulation's NCCL.
#pragma once

namespace cuda_on_host {

// The network fails: no rank reaches another any more, and every process lives.
void cut_connections();

}  // namespace cuda_on_host
