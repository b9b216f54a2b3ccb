#include "tools/jem_engine/job.h"

#include "engine/device/device.h"
#include "engine/files/messages.h"

namespace jem {

Ranks& Job::join() {
    if (ranks_) return *ranks_;
    ranks_ = join_ranks(launch_, tell);
    if (several()) {
        threads_ = threads_of_rank(*ranks_);
        gpu_ = gpu_of_rank(local_place(*ranks_).rank);
    }
    return *ranks_;
}

void Job::join_device(Device& device) {
    refuse_mixed_devices(join(), device.name());
    device.join(join());
}

void Job::leave_failed(int exit_code) {
    if (ranks_ && several() && !ranks_->parting()) ranks_->abort(exit_code);
    leave();
}

Job& the_job() {
    static Job job;
    return job;
}

}  // namespace jem
