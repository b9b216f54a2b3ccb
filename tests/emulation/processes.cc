#include "tests/emulation/processes.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <utility>

#include "engine/device/cuda/cuda_device.h"
#include "tests/emulation/control.h"

namespace jem {
namespace {

using Clock = std::chrono::steady_clock;

// The second is for builds that check every access, on a machine that does other things.
constexpr std::chrono::seconds kPatience{120}, kPatienceChecked{600};
// The child's environment names the test case; its last word and exit codes say how it ended.
constexpr char kCase[] = "JEM_RANK_OF_TEST_CASE", kDone[] = "this rank is done\n", kDied[] = "this rank dies as planned\n";
constexpr int kDiedCode = 77;

const char* current_case() { return doctest::getContextOptions()->currentTest->m_name; }

int free_port() {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    REQUIRE(bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0);
    REQUIRE(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
    close(fd);
    return ntohs(address.sin_port);
}

// What a launcher sets, or another launcher would be taken for.
bool of_launcher(const std::string& variable) {
    for (const char* name : {"RANK=", "WORLD_SIZE=", "LOCAL_RANK=", "MASTER_ADDR=", "MASTER_PORT=", "TORCHELASTIC_RUN_ID=", "OMPI_", "PMI"})
        if (variable.starts_with(name)) return true;
    return false;
}

class Process {
public:
    Process(int rank, int size, int port) : rank_(rank) {
        std::vector<std::string> environment;
        for (char** e = environ; *e != nullptr; ++e)
            if (!of_launcher(*e)) environment.emplace_back(*e);
        const auto set = [&](const std::string& name, const std::string& value) { environment.push_back(name + "=" + value); };
        set("RANK", std::to_string(rank));
        set("WORLD_SIZE", std::to_string(size));
        set("MASTER_ADDR", "127.0.0.1");
        set("MASTER_PORT", std::to_string(port));
        set("TORCHELASTIC_RUN_ID", std::string(current_case()) + " of process " + std::to_string(getpid()));
        set(kCase, current_case());
        std::vector<std::string> arguments = {"/proc/self/exe", "--test-case=" + std::string(current_case()), "--no-intro=true",
                                              "--no-colors=true"};
        const auto pointers = [](std::vector<std::string>& texts) {
            std::vector<char*> out;
            for (std::string& t : texts) out.push_back(t.data());
            out.push_back(nullptr);
            return out;
        };
        int ends[2];
        REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
        const int status =
            posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, pointers(arguments).data(), pointers(environment).data());
        posix_spawn_file_actions_destroy(&actions);
        close(ends[1]);
        output_ = ends[0];
        if (status != 0) pid_ = -1;
    }
    Process(Process&& other) noexcept
        : rank_(other.rank_),
          pid_(std::exchange(other.pid_, -1)),
          output_(std::exchange(other.output_, -1)),
          text_(std::move(other.text_)),
          end_(other.end_) {}
    Process& operator=(Process&&) = delete;
    ~Process() {
        if (pid_ > 0) {
            kill(pid_, SIGKILL);
            waitpid(pid_, nullptr, 0);
        }
        if (output_ >= 0) close(output_);
    }

    // Reads what there is; whether it still runs.
    bool look(std::chrono::milliseconds time) {
        if (output_ >= 0) {
            pollfd what = {.fd = output_, .events = POLLIN, .revents = 0};
            char piece[4096];
            while (poll(&what, 1, static_cast<int>(time.count())) > 0) {
                const ssize_t n = read(output_, piece, sizeof piece);
                if (n <= 0) {
                    close(std::exchange(output_, -1));
                    break;
                }
                text_.append(piece, static_cast<size_t>(n));
                time = {};
            }
        }
        if (pid_ > 0 && output_ < 0 && waitpid(pid_, &end_, WNOHANG) == pid_) pid_ = -1;
        return pid_ > 0;
    }
    void stop() {
        kill(pid_, SIGKILL);
        text_ += "(killed: it did not end in time)\n";
    }

    void check_end() const {
        const bool died =
            WIFEXITED(end_) && WEXITSTATUS(end_) == kDiedCode && text_.ends_with(kDied) && text_.find(" ERROR: ") == std::string::npos;
        const bool done = WIFEXITED(end_) && WEXITSTATUS(end_) == 0 && text_.find(kDone) != std::string::npos;
        const std::string how =
            WIFEXITED(end_) ? "exit code " + std::to_string(WEXITSTATUS(end_)) : "signal " + std::to_string(WTERMSIG(end_));
        CHECK_MESSAGE((died || done), "rank ", rank_, " ended with ", how, ". It printed:\n", text_);
    }

private:
    int rank_;
    pid_t pid_ = -1;
    int output_ = -1;
    std::string text_;
    int end_ = -1;
};

void be_a_rank(const std::function<void(Ranks&)>& body, Races races) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const uint64_t before = cuda_on_host::races();
    const std::unique_ptr<Ranks> ranks = join_ranks(find_launch());
    try {
        body(*ranks);
    } catch (const std::exception& e) {
        std::cout << "rank " << ranks->rank() << ": " << e.what() << std::endl;
        ranks->abort(kFailedCode);  // as the program does: the others shall not take it for an orderly end
    } catch (...) {                 // a REQUIRE, which has said what is wrong
        std::cout << std::flush;
        ranks->abort(kFailedCode);
    }
    if (races == Races::none) CHECK_MESSAGE(cuda_on_host::races() == before, "ThreadSanitizer reported a race");
    std::cout << kDone << std::flush;
}

}  // namespace

void die_as_planned() {
    std::cout << kDied << std::flush;
    std::_Exit(kDiedCode);
}

void on_processes(int size, const std::function<void(Ranks&)>& body, Races races) {
    if (const char* test_case = std::getenv(kCase)) {
        REQUIRE(std::string(test_case) == current_case());
        return be_a_rank(body, races);
    }
    if (const std::string missing = missing_nccl(); !missing.empty()) {
        std::printf("SKIPPED: %s\n", missing.c_str());
        return;
    }
    const int port = free_port();
    std::vector<Process> processes;
    for (int r = 0; r < size; ++r) processes.emplace_back(r, size, port);
    const Clock::time_point deadline = Clock::now() + (cuda_on_host::checks_accesses() ? kPatienceChecked : kPatience);
    bool stopped = false;
    for (bool running = true; running;) {
        running = false;
        for (Process& p : processes) running = p.look(std::chrono::milliseconds(20)) || running;
        if (!running || stopped || Clock::now() < deadline) continue;
        stopped = true;
        for (Process& p : processes)
            if (p.look({})) p.stop();
    }
    for (const Process& p : processes) p.check_end();
}

}  // namespace jem
