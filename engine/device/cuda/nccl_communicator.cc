#include "engine/device/cuda/nccl_communicator.h"

#include "engine/device/cuda/cuda_device.h"

#include <nccl.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace jem {
namespace {

constexpr std::chrono::seconds kWatchInterval{1};

std::string error_text(ncclResult_t status, ncclComm_t communicator, const char* what) {
    return std::string("Could not ") + what + " (NCCL: " + ncclGetErrorString(status) + "; " + ncclGetLastError(communicator) +
           "). A rank may have died: see what the others said, or run again with NCCL_DEBUG=WARN. Go on with --resume.";
}

void check_nccl(ncclResult_t status, const char* what) {
    if (status != ncclSuccess) throw RankLost(error_text(status, nullptr, what));
}

ncclDataType_t type_of(DType type) {
    switch (type) {
        case DType::f32:
            return ncclFloat32;
        case DType::f64:
            return ncclFloat64;
        case DType::bf16:
            return ncclBfloat16;
        case DType::u8:
            return ncclUint8;
        case DType::i32:
            return ncclInt32;
    }
    return ncclUint8;
}

// A kernel of NCCL's waits for the other ranks as long as it takes, and whoever waits for the GPU with it. So a thread looks every
// second whether NCCL has met an error or a process is gone, and then aborts: the kernels return, the waits end, and check() throws.
class NcclCommunicator final : public Communicator {
public:
    NcclCommunicator(CudaLauncher& launcher, Ranks& ranks) : Communicator(ranks), launcher_(launcher) {
        ncclUniqueId id = {};
        if (first()) check_nccl(ncclGetUniqueId(&id), "get NCCL's unique id");
        ranks.broadcast(&id, sizeof id);
        check_nccl(ncclCommInitRank(&communicator_, size(), id, rank()), "connect the GPUs");
        watch_ = std::thread([this] { watch(); });
    }
    // To destroy it is a collective, too, that waits for every rank: where one is lost, or this one leaves alone by an exception while the
    // others wait for it in another, it would wait for ever. The process is about to end then, and takes the communicator with it.
    ~NcclCommunicator() override {
        cudaStreamSynchronize(launcher_.stream());  // while somebody watches
        {
            const std::lock_guard lock(mutex_);
            ending_ = true;
        }
        end_.notify_one();
        watch_.join();
        if (error_.empty() && !ranks().lost() && std::uncaught_exceptions() == 0) ncclCommDestroy(communicator_);
    }

    void all_reduce_sum(Array x) override {
        queue("all_reduce_sum", 2.0 * static_cast<double>(x.bytes()), "sum over the ranks", [&](ncclComm_t c, cudaStream_t stream) {
            return ncclAllReduce(x.data, x.data, static_cast<size_t>(x.count), type_of(x.type), ncclSum, c, stream);
        });
    }
    void all_gather(Array all) override {
        const Array mine = own(all);
        queue("all_gather", static_cast<double>(all.bytes()), "gather from the ranks", [&](ncclComm_t c, cudaStream_t stream) {
            return ncclAllGather(mine.data, all.data, static_cast<size_t>(mine.count), type_of(all.type), c, stream);
        });
    }
    void broadcast(Array x) override {
        queue("broadcast", static_cast<double>(x.bytes()), "broadcast", [&](ncclComm_t c, cudaStream_t stream) {
            return ncclBroadcast(x.data, x.data, static_cast<size_t>(x.count), type_of(x.type), 0, c, stream);
        });
    }
    void check() override {
        const std::lock_guard lock(mutex_);
        if (!error_.empty()) throw RankLost(error_);
    }

private:
    template <class Call>
    void queue(const char* label, double bytes, const char* what, Call call) {
        if (!launcher_.announce(label, {.bytes = bytes})) return;
        std::string error;
        {
            const std::lock_guard lock(mutex_);
            error = error_;
            if (error.empty())
                if (const ncclResult_t status = call(communicator_, launcher_.stream()); status != ncclSuccess)
                    error = error_text(status, communicator_, what);
        }
        launcher_.launched();
        if (!error.empty()) throw RankLost(error);
    }

    void watch() {
        std::unique_lock lock(mutex_);
        while (!end_.wait_for(lock, kWatchInterval, [this] { return ending_; })) {
            ncclResult_t status = ncclSuccess;
            const ncclResult_t asked = ncclCommGetAsyncError(communicator_, &status);
            if (asked != ncclSuccess || (status != ncclSuccess && status != ncclInProgress))
                error_ = std::string("The GPUs have lost each other (NCCL: ") + ncclGetErrorString(asked != ncclSuccess ? asked : status) +
                         "). A rank may have died: see what the others said. Go on with --resume.";
            else if (ranks().lost())
                error_ = "Another rank is gone. See what it said last; go on with --resume.";
            if (error_.empty()) continue;
            // Not under the lock: since NCCL 2.26 it waits until no graph holds calls of the communicator, and the graphs go when check()
            // has thrown.
            lock.unlock();
            ncclCommAbort(communicator_);
            return;
        }
    }

    CudaLauncher& launcher_;
    ncclComm_t communicator_ = nullptr;
    std::thread watch_;
    std::mutex mutex_;  // of what follows, and of calls against the abort
    std::condition_variable end_;
    bool ending_ = false;
    std::string error_;  // not empty: aborted
};

}  // namespace

std::string missing_nccl() { return ""; }

std::string nccl_version() {
    int version = 0;
    if (ncclGetVersion(&version) != ncclSuccess) return "of unknown version";
    return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
}

std::unique_ptr<Communicator> make_nccl_communicator(CudaLauncher& launcher, Ranks& ranks) {
    return std::make_unique<NcclCommunicator>(launcher, ranks);
}

}  // namespace jem
