// Collectives of devices whose memory is the host's.
#pragma once

#include <memory>
#include <vector>

#include "engine/device/host/host_stream.h"
#include "engine/ranks/communicator.h"

namespace jem {

class HostCommunicator final : public Communicator {
public:
    HostCommunicator(HostStream& stream, Ranks& ranks);

    void all_reduce_sum(Array x) override;
    void all_gather(Array all) override;
    void broadcast(Array x) override;

private:
    template <class T>
    void sum(T* x, int64_t count);

    HostStream& stream_;
    std::vector<double> received_, padded_;  // one piece each; doubles for their alignment
};

}  // namespace jem
