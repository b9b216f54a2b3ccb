#include "engine/ranks/tcp/tcp_ranks.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>

namespace jem {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPorts = 8;              // that one, and the next ones
constexpr int kAnswerSeconds = 2;      // for a stranger at that port to answer like one of ours
constexpr int kPatienceSeconds = 5;    // of silence
constexpr char kMagic[8] = "jemrank";  // what both sides begin with

class Socket {
public:
    explicit Socket(int fd = -1) : fd_(fd) {}
    Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Socket& operator=(Socket&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Socket() {
        if (fd_ >= 0) close(fd_);
    }
    int fd() const { return fd_; }
    bool open() const { return fd_ >= 0; }

private:
    int fd_;
};

struct Hello {
    char magic[8];
    uint64_t job;
    int32_t rank, size;
};

bool send_all(int fd, const void* data, size_t bytes) {
    const char* at = static_cast<const char*>(data);
    while (bytes > 0) {
        const ssize_t n = send(fd, at, bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        at += n;
        bytes -= static_cast<size_t>(n);
    }
    return true;
}

bool receive_all(int fd, void* data, size_t bytes) {
    char* at = static_cast<char*>(data);
    while (bytes > 0) {
        const ssize_t n = recv(fd, at, bytes, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        at += n;
        bytes -= static_cast<size_t>(n);
    }
    return true;
}

void set_receive_limit(int fd, int seconds) {
    const timeval limit = {.tv_sec = seconds, .tv_usec = 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

// A machine that vanishes without a word is noticed after 15 + 4 * 5 seconds.
void prepare(int fd) {
    const int on = 1, idle = 15, interval = 5, probes = 4;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    set_receive_limit(fd, 0);
}

// Visits the addresses of host (null: any of this machine) until visit answers true.
void for_each_address(const char* host, int port, const std::function<bool(const addrinfo&)>& visit) {
    addrinfo hints = {};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = host == nullptr ? AI_PASSIVE : 0;
    hints.ai_family = host == nullptr ? AF_INET : AF_UNSPEC;
    addrinfo* found = nullptr;
    if (getaddrinfo(host, std::to_string(port).c_str(), &hints, &found) != 0) return;
    for (const addrinfo* a = found; a != nullptr; a = a->ai_next)
        if (visit(*a)) break;
    freeaddrinfo(found);
}

class TcpRanks final : public Ranks {
public:
    explicit TcpRanks(const TcpPlace& place) : Ranks(place.rank, place.size), place_(place) {
        hello_ = {.magic = {}, .job = std::hash<std::string>{}(place.job), .rank = place.rank, .size = place.size};
        std::memcpy(hello_.magic, kMagic, sizeof kMagic);
        deadline_ = Clock::now() + std::chrono::seconds(place.timeout_s);
        if (rank() == 0)
            gather_ranks();
        else
            find_first_rank();
    }
    TcpRanks(const TcpRanks&) = delete;  // owns the sockets
    TcpRanks& operator=(const TcpRanks&) = delete;
    // A last byte tells an orderly end from a death.
    ~TcpRanks() override {
        const char bye = 0;
        for (const Socket& s : others_)
            if (s.open()) send_all(s.fd(), &bye, 1);
    }

    void all_gather(void* all, size_t bytes) override {
        auto* slices = static_cast<std::byte*>(all);
        if (rank() > 0) {
            put(0, slices + static_cast<size_t>(rank()) * bytes, bytes);
            return get(0, all, bytes * static_cast<size_t>(size()));
        }
        for (int r = 1; r < size(); ++r) get(r, slices + static_cast<size_t>(r) * bytes, bytes);
        for (int r = 1; r < size(); ++r) put(r, all, bytes * static_cast<size_t>(size()));
    }
    void all_to_all(void* to, const void* from, size_t bytes) override {
        const size_t n = static_cast<size_t>(size()), me = static_cast<size_t>(rank());
        std::vector<std::byte> everything(n * n * bytes);
        std::memcpy(everything.data() + me * n * bytes, from, n * bytes);
        all_gather(everything.data(), n * bytes);
        for (size_t r = 0; r < n; ++r)
            std::memcpy(static_cast<std::byte*>(to) + r * bytes, everything.data() + (r * n + me) * bytes, bytes);
    }
    void broadcast(void* data, size_t bytes) override {
        if (rank() > 0) return get(0, data, bytes);
        for (int r = 1; r < size(); ++r) put(r, data, bytes);
    }
    bool lost() noexcept override {
        for (const Socket& s : others_) {
            char byte;
            if (!s.open()) continue;
            const ssize_t n = recv(s.fd(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
            if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) return true;
        }
        return false;
    }
    [[noreturn]] void abort(int exit_code) noexcept override { std::_Exit(exit_code); }  // the others see the closed socket

private:
    [[noreturn]] void gone(int other) const {
        throw RankLost("Rank " + std::to_string(other) +
                       " is gone (its connection is closed). See what it said last; go on with --resume.");
    }
    void put(int other, const void* data, size_t bytes) {
        if (!send_all(others_[static_cast<size_t>(other)].fd(), data, bytes)) gone(other);
    }
    void get(int other, void* data, size_t bytes) {
        if (!receive_all(others_[static_cast<size_t>(other)].fd(), data, bytes)) gone(other);
    }
    int milliseconds_left() const {
        return static_cast<int>(
            std::max<int64_t>(0, std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - Clock::now()).count()));
    }
    // For poll: until something is to be said, or time is up.
    int milliseconds_to_wait() const { return told_ ? milliseconds_left() : std::min(milliseconds_left(), kPatienceSeconds * 1000); }
    void say_after_a_while(const std::string& what) {
        if (told_ || Clock::now() < deadline_ - std::chrono::seconds(place_.timeout_s) + std::chrono::seconds(kPatienceSeconds)) return;
        told_ = true;
        if (place_.tell)
            place_.tell("This is rank " + std::to_string(rank()) + " of " + std::to_string(size()) +
                        " (RANK and WORLD_SIZE say so; unset them to work alone). It waits for " + what + ", for up to " +
                        std::to_string(place_.timeout_s) + " s.");
    }
    bool greets(int fd, Hello& theirs) const {
        set_receive_limit(fd, kAnswerSeconds);
        return receive_all(fd, &theirs, sizeof theirs) && std::memcmp(theirs.magic, hello_.magic, sizeof hello_.magic) == 0 &&
               theirs.job == hello_.job && theirs.size == hello_.size && theirs.rank >= 0 && theirs.rank < size();
    }

    void gather_ranks() {
        Socket listener;
        for (int port = place_.port; port < place_.port + kPorts && !listener.open(); ++port)
            for_each_address(nullptr, port, [&](const addrinfo& a) {
                Socket s(socket(a.ai_family, a.ai_socktype | SOCK_CLOEXEC, a.ai_protocol));
                const int on = 1;
                if (!s.open()) return false;
                setsockopt(s.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
                if (bind(s.fd(), a.ai_addr, a.ai_addrlen) != 0 || listen(s.fd(), size()) != 0) return false;
                listener = std::move(s);
                return true;
            });
        if (!listener.open())
            throw RankLost("Rank 0 cannot listen on port " + std::to_string(place_.port) + " or the " + std::to_string(kPorts - 1) +
                           " after it (" + std::strerror(errno) + "). Give torchrun another --master-port.");
        others_.resize(static_cast<size_t>(size()));
        for (int missing = size() - 1; missing > 0;) {
            pollfd waiting = {.fd = listener.fd(), .events = POLLIN, .revents = 0};
            const int ready = poll(&waiting, 1, milliseconds_to_wait());
            say_after_a_while(std::to_string(missing) + " of the others");
            if (ready == 0 && milliseconds_left() > 0) continue;
            if (ready == 0)
                throw RankLost(std::to_string(missing) + " of " + std::to_string(size()) + " ranks did not appear within " +
                               std::to_string(place_.timeout_s) + " s. See what they said.");
            Socket s(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
            Hello theirs;
            if (!s.open() || !greets(s.fd(), theirs) || theirs.rank == 0 || others_[static_cast<size_t>(theirs.rank)].open()) continue;
            if (!send_all(s.fd(), &hello_, sizeof hello_)) continue;
            prepare(s.fd());
            others_[static_cast<size_t>(theirs.rank)] = std::move(s);
            --missing;
        }
    }

    void find_first_rank() {
        others_.resize(1);
        while (milliseconds_left() > 0) {
            for (int port = place_.port; port < place_.port + kPorts; ++port)
                for_each_address(place_.address.c_str(), port, [&](const addrinfo& a) {
                    Socket s(socket(a.ai_family, a.ai_socktype | SOCK_CLOEXEC, a.ai_protocol));
                    Hello theirs;
                    if (!s.open() || connect(s.fd(), a.ai_addr, a.ai_addrlen) != 0) return false;
                    if (!send_all(s.fd(), &hello_, sizeof hello_) || !greets(s.fd(), theirs) || theirs.rank != 0) return false;
                    prepare(s.fd());
                    others_[0] = std::move(s);
                    return true;
                });
            if (others_[0].open()) return;
            say_after_a_while("rank 0 at " + place_.address + ":" + std::to_string(place_.port));
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
        }
        throw RankLost("Rank 0 does not answer at " + place_.address + ":" + std::to_string(place_.port) + " within " +
                       std::to_string(place_.timeout_s) + " s. See what it said.");
    }

    TcpPlace place_;
    Hello hello_;
    Clock::time_point deadline_;
    bool told_ = false;
    std::vector<Socket> others_;  // of rank 0: one for each rank, its own closed; of others: rank 0's
};

}  // namespace

std::unique_ptr<Ranks> make_tcp_ranks(const TcpPlace& place) { return std::make_unique<TcpRanks>(place); }

}  // namespace jem
