// What the ranks of a job tell each other on their devices: queued on the device's stream like ops, so that it is recorded into
// phases and counted in dry runs. This class is a lone rank's: it queues nothing. Others: host/, cuda/.
#pragma once

#include "engine/ranks/ranks.h"
#include "kernels/tensor.h"

namespace jem {

class Communicator {
public:
    explicit Communicator(Ranks& ranks) : ranks_(ranks) {}
    Communicator(const Communicator&) = delete;  // a rank has one
    Communicator& operator=(const Communicator&) = delete;
    virtual ~Communicator() = default;

    Ranks& ranks() const { return ranks_; }  // on the host
    int rank() const { return ranks_.rank(); }
    int size() const { return ranks_.size(); }
    bool first() const { return rank() == 0; }

    // x (f32 or f64) = the sum of every rank's x, added in an order that repeats for a number of ranks.
    virtual void all_reduce_sum(Array) {}
    // `all` holds a slice for each rank, in their order, and each rank has written its own: then everyone has all.
    virtual void all_gather(Array) {}
    // Rank 0's x to everyone.
    virtual void broadcast(Array) {}
    // Throws RankLost where it is known by now that a rank is gone. Waits for nothing.
    virtual void check() {}

    // This rank's slice of an array that holds one for each.
    Array own(Array all) const { return all.slice(rank() * (all.count / size()), all.count / size()); }

private:
    Ranks& ranks_;
};

}  // namespace jem
