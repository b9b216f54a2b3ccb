// Ranks that torchrun started: a star of sockets around rank 0. For small things (NCCL's unique id, agreement on errors and
// interrupts); gradients do not go this way.
#pragma once

#include <functional>

#include "engine/ranks/ranks.h"

namespace jem {

struct TcpPlace {
    int rank = 0, size = 1;
    std::string address;                                     // of rank 0
    int port = 0;                                            // torchrun's own store may hold it: that one, or one of the next few, is taken
    std::string job;                                         // told apart from other jobs that look for their ranks on the same machine
    int timeout_s = 60;                                      // for all ranks to appear
    std::function<void(const std::string&)> tell = nullptr;  // what it waits for, from the fifth second on
};

// RankLost where they do not find each other in time.
std::unique_ptr<Ranks> make_tcp_ranks(const TcpPlace& place);

}  // namespace jem
