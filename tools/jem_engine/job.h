// The processes that this one was started with.
#pragma once

#include <memory>
#include <string>

#include "engine/ranks/ranks.h"

namespace jem {

class Device;

class Job {
public:
    // Reads mpirun's or torchrun's environment; InputError where it contradicts itself. Starts nothing.
    Job() : launch_(find_launch()) {}

    const Launch& launch() const { return launch_; }
    bool several() const { return launch_.size > 1; }
    bool first() const { return launch_.rank == 0; }
    bool joined() const { return ranks_ != nullptr; }

    // Joins the others, the first time. Waits for them.
    Ranks& join();
    // CPU threads of this rank, when it shares its cores with others; 0 for a process alone. After join.
    int threads() const { return threads_; }
    // Which of the GPUs that it sees is this rank's own. After join.
    int gpu() const { return gpu_; }
    // Makes the device this rank's of the job. InputError where --device auto found other kinds for other ranks.
    void join_device(Device& device);

    // Leaves the others in order: every rank does, at its end.
    void leave() { ranks_.reset(); }
    // The same after an error. Where the others may know nothing of it, ends them and this process.
    void leave_failed(int exit_code);

private:
    Launch launch_;
    std::unique_ptr<Ranks> ranks_;
    int threads_ = 0, gpu_ = 0;
};

// This process's, made at the first call.
Job& the_job();

}  // namespace jem
