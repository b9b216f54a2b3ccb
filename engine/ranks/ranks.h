// The processes of one job, and what they tell each other on the host. Implemented by mpi/ and tcp/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/input_error.h"

namespace jem {

// Another process of the job is gone, or cannot be reached.
class RankLost : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// Another rank failed and says why; this one leaves with the same exit code, without a word.
class OtherRankFailed : public std::exception {
public:
    explicit OtherRankFailed(int code) : code_(code) {}
    const char* what() const noexcept override { return "another rank failed"; }
    int exit_code() const { return code_; }

private:
    int code_;
};

class Ranks {
public:
    virtual ~Ranks() = default;
    int rank() const { return rank_; }
    int size() const { return size_; }

    // Every rank makes these calls, in the same order; each waits for the others' data. RankLost where one is gone.
    // `all` holds size() slices of `bytes`; each rank has written its own.
    virtual void all_gather(void* all, size_t bytes) = 0;
    // Slice r of `from` goes to rank r; slice r of `to` comes from rank r.
    virtual void all_to_all(void* to, const void* from, size_t bytes) = 0;
    // Rank 0's bytes to everyone.
    virtual void broadcast(void* data, size_t bytes) = 0;

    // Whether another process is known to be gone. Any thread may ask, at any time; never waits.
    virtual bool lost() noexcept { return false; }
    // Ends every process of the job, this one included, as far as that can be done from here.
    [[noreturn]] virtual void abort(int exit_code) noexcept = 0;

    void barrier() { any(false); }
    // Whether it is true on any rank.
    bool any(bool mine);

    // Set by `together`: every rank knows of the failure and is about to leave.
    bool parting() const { return parting_; }
    void part() { parting_ = true; }

protected:
    Ranks(int rank, int size) : rank_(rank), size_(size) {}

private:
    int rank_, size_;
    bool parting_ = false;
};

// The one rank of a program that was started alone: nothing to tell, nobody to wait for.
Ranks& lone_rank();

inline constexpr int kFailedCode = 1, kInputErrorCode = 2;  // exit codes of the program

// Runs body, which must not call the other ranks, on every rank. Where it throws on any, all leave: the first such rank with its
// exception, the others with OtherRankFailed.
template <class Body>
void together(Ranks& ranks, Body&& body) {
    if (ranks.size() == 1) return body();
    int32_t code = 0;
    std::exception_ptr mine;
    try {
        body();
    } catch (const InputError&) {
        code = kInputErrorCode;
        mine = std::current_exception();
    } catch (...) {
        code = kFailedCode;
        mine = std::current_exception();
    }
    std::vector<int32_t> codes(static_cast<size_t>(ranks.size()));
    codes[static_cast<size_t>(ranks.rank())] = code;
    ranks.all_gather(codes.data(), sizeof code);
    for (int r = 0; r < ranks.size(); ++r) {
        if (codes[static_cast<size_t>(r)] == 0) continue;
        ranks.part();
        if (r == ranks.rank()) std::rethrow_exception(mine);
        throw OtherRankFailed(codes[static_cast<size_t>(r)]);
    }
}

// Where this process stands in its job, as mpirun's or torchrun's environment says.
struct Launch {
    enum class By { nobody, mpirun, torchrun };
    By by = By::nobody;
    int rank = 0, size = 1;
    std::string master;  // torchrun: address and port of rank 0
    int port = 0;
};
// InputError for an environment that contradicts itself.
Launch find_launch();

// Joins the other processes; lone_rank's like where there are none. InputError where this build has no MPI and mpirun started it.
// tell: hears what is being waited for, where that takes long.
std::unique_ptr<Ranks> join_ranks(const Launch& launch, const std::function<void(const std::string&)>& tell = nullptr);

// What is missing for several ranks on the CPU and how to get it; empty where this build has MPI.
std::string missing_mpi();
std::string mpi_version();  // "Open MPI 4.1.4"; empty without MPI. Starts nothing.

// This process among those of the job that run on the same machine.
struct LocalPlace {
    int rank = 0, size = 1;
};
LocalPlace local_place(Ranks& ranks);

// Which of the GPUs that this process sees is its own, of the rank that is local_rank-th on its machine: 0 where the launcher shows each
// rank one alone, else as LOCAL_RANK says where it is set. InputError for one that is no number.
int gpu_of_rank(int local_rank);
// InputError, on every rank, where they have not all the same kind of device: their collectives would wait for each other for ever.
// kind: "cpu" ... Every rank calls it, outside `together`.
void refuse_mixed_devices(Ranks& ranks, const std::string& kind);

}  // namespace jem
