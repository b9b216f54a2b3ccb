#include "engine/ranks/mpi/mpi_ranks.h"

#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace jem {
namespace {

constexpr auto kLookInterval = std::chrono::seconds(1);  // for ranks that have died, while waiting
constexpr size_t kPieceBytes = size_t{64} << 20;         // of a broadcast: MPI counts in ints
constexpr int kTestsAwake = 2000;                        // of a wait, before it sleeps between tests
constexpr long kSleepNanoseconds = 50'000;  // short against an iteration, long against a spin that takes a core from the others

void check(int status, const char* what) {
    if (status == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = {};
    int length = 0;
    MPI_Error_string(status, text, &length);
    throw RankLost(std::string("Could not ") + what + " (MPI: " + text +
                   "). A rank may have died; see what the others said. Go on with --resume.");
}

// Where a process is to be found: a pid means something on its machine, within its namespace.
struct Home {
    char machine[256];
    uint64_t pid_namespace;
    int64_t pid;
};

Home home_of_this_process() {
    Home home = {};
    gethostname(home.machine, sizeof home.machine - 1);
    struct stat status;
    if (stat("/proc/self/ns/pid", &status) == 0) home.pid_namespace = status.st_ino;
    home.pid = getpid();
    return home;
}

class MpiRanks final : public Ranks {
public:
    MpiRanks(int rank, int size) : Ranks(rank, size) {
        std::vector<Home> homes(static_cast<size_t>(size));
        Home& mine = homes[static_cast<size_t>(rank)] = home_of_this_process();
        all_gather(homes.data(), sizeof(Home));
        for (const Home& h : homes)
            if (std::strcmp(h.machine, mine.machine) == 0 && h.pid_namespace == mine.pid_namespace && h.pid_namespace != 0)
                neighbours_.push_back(static_cast<pid_t>(h.pid));
    }
    MpiRanks(const MpiRanks&) = delete;  // MPI is finalised once
    MpiRanks& operator=(const MpiRanks&) = delete;
    ~MpiRanks() override { MPI_Finalize(); }

    void all_gather(void* all, size_t bytes) override {
        MPI_Request request;
        check(MPI_Iallgather(MPI_IN_PLACE, 0, MPI_BYTE, all, count_of(bytes), MPI_BYTE, MPI_COMM_WORLD, &request), "gather");
        wait(request, "gather");
    }
    void all_to_all(void* to, const void* from, size_t bytes) override {
        MPI_Request request;
        check(MPI_Ialltoall(from, count_of(bytes), MPI_BYTE, to, count_of(bytes), MPI_BYTE, MPI_COMM_WORLD, &request), "exchange");
        wait(request, "exchange");
    }
    void broadcast(void* data, size_t bytes) override {
        for (size_t at = 0; at < bytes; at += kPieceBytes) {
            MPI_Request request;
            check(MPI_Ibcast(static_cast<std::byte*>(data) + at, count_of(std::min(kPieceBytes, bytes - at)), MPI_BYTE, 0, MPI_COMM_WORLD,
                             &request),
                  "broadcast");
            wait(request, "broadcast");
        }
    }
    // mpirun ends the others when one dies; some launchers do not. Of a rank on another machine MPI's sockets tell.
    bool lost() noexcept override {
        for (const pid_t pid : neighbours_)
            if (kill(pid, 0) != 0 && errno == ESRCH) return true;
        return false;
    }
    [[noreturn]] void abort(int exit_code) noexcept override {
        MPI_Abort(MPI_COMM_WORLD, exit_code);
        std::_Exit(exit_code);
    }

private:
    static int count_of(size_t bytes) {
        if (bytes > (size_t{1} << 30)) throw std::length_error("A message of " + std::to_string(bytes >> 20) + " MiB is too long for MPI.");
        return static_cast<int>(bytes);
    }
    // MPI's own waits spin: a rank that waits for another's evaluation would take its cores.
    void wait(MPI_Request& request, const char* what) {
        const timespec pause = {.tv_sec = 0, .tv_nsec = kSleepNanoseconds};
        auto look = std::chrono::steady_clock::now() + kLookInterval;
        for (int tests = 0;; ++tests) {
            int done = 0;
            check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), what);
            if (done != 0) return;
            if (tests < kTestsAwake) {
                sched_yield();
                continue;
            }
            nanosleep(&pause, nullptr);
            if (const auto now = std::chrono::steady_clock::now(); now >= look) {
                if (lost()) throw RankLost("A rank on this machine has died. See what it said last; go on with --resume.");
                look = now + kLookInterval;
            }
        }
    }

    std::vector<pid_t> neighbours_;
};

}  // namespace

std::string missing_mpi() { return ""; }

std::string mpi_version() {
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
    int length = 0;
    if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return "of unknown version";
    const std::string line(text, static_cast<size_t>(length));
    return line.substr(0, line.find_first_of(",\n"));
}

std::unique_ptr<Ranks> make_mpi_ranks() {
    int provided = 0, rank = 0, size = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "initialise MPI");
    check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "set MPI's error handler");
    check(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "ask for the rank");
    check(MPI_Comm_size(MPI_COMM_WORLD, &size), "ask for the number of ranks");
    if (size == 1) {
        MPI_Finalize();
        throw InputError(
            "mpirun started several processes, but MPI connects only one (the mpirun is another MPI's than the library). Use the " +
            mpi_version() + " mpirun.");
    }
    return std::make_unique<MpiRanks>(rank, size);
}

}  // namespace jem
