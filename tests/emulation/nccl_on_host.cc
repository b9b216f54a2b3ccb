// NCCL as the emulated GPUs see it: the ranks are processes of one machine and exchange over loopback sockets, in a star around rank 0.
// A collective is a kernel of one thread on the caller's stream, so that order, capture, bounds, races and reads of what nobody
// wrote are checked for it as for any kernel. Everyone gets every rank's numbers and adds them in the ranks' order.
// What NCCL would answer by hanging or by wrong numbers fails here, with text: calls that differ between ranks, a rank that never
// comes, calls on a communicator that is gone, and an end that waits for ever, for its graphs or for another rank.
#include "tests/emulation/nccl_on_host.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <nccl.h>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/emulation/control.h"
#include "tests/emulation/cuda_on_host.h"
#include "tests/emulation/executor.h"
#include "tests/emulation/written.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kConnect{60};  // for all ranks to come
constexpr std::chrono::seconds kExchange{
    120};  // for a rank that lives to come to the same collective; instrumented, an iteration takes long
constexpr std::chrono::seconds kAbandoned{20};  // for somebody to abort when a rank is gone
constexpr std::chrono::seconds kEnd{10};        // for the other ranks to end as well
constexpr std::chrono::seconds kGraphs{10};     // for another thread to drop its graphs; instrumented, that takes a while
constexpr std::chrono::milliseconds kTick{20};  // between two looks at whether the communicator was aborted

enum class Kind : int32_t { all_reduce, all_gather, broadcast, destroy };

const char* name_of(Kind kind) {
    switch (kind) {
        case Kind::all_reduce:
            return "ncclAllReduce";
        case Kind::all_gather:
            return "ncclAllGather";
        case Kind::broadcast:
            return "ncclBroadcast";
        case Kind::destroy:
            return "ncclCommDestroy";
    }
    return "?";
}

size_t size_of(ncclDataType_t type) {
    switch (type) {
        case ncclUint8:
            return 1;
        case ncclBfloat16:
            return 2;
        case ncclInt32:
        case ncclFloat32:
            return 4;
        case ncclFloat64:
            return 8;
        default:
            return 0;
    }
}

// What every rank must say alike.
struct Call {
    Kind kind = Kind::destroy;
    int32_t type = 0, root = 0, padding = 0;
    uint64_t count = 0, number = 0;  // number: of the collectives before it
    bool operator==(const Call&) const = default;

    // What a rank brings.
    size_t bytes(int rank) const {
        if (kind == Kind::destroy || (kind == Kind::broadcast && rank != root)) return 0;
        return count * size_of(static_cast<ncclDataType_t>(type));
    }
    std::string text() const {
        if (kind == Kind::destroy) return std::string(name_of(kind)) + " after " + std::to_string(number) + " collectives";
        return std::string(name_of(kind)) + " of " + std::to_string(count) + " of type " + std::to_string(type) +
               (kind == Kind::broadcast ? " from rank " + std::to_string(root) : "") + " as collective " + std::to_string(number);
    }
};

struct Hello {
    uint64_t nonce;
    int32_t rank, size;
};
struct Id {  // the contents of a ncclUniqueId
    uint64_t nonce;
    int32_t port;
};
struct Verdict {  // rank 0's on a collective
    char problem[400];
};

// Not the library's functions: ThreadSanitizer takes those for an order between streams, which would hide their races.
ssize_t send_some(int fd, const void* data, size_t bytes) {
    return syscall(SYS_sendto, fd, data, bytes, MSG_NOSIGNAL | MSG_DONTWAIT, nullptr, 0);
}
ssize_t receive_some(int fd, void* data, size_t bytes) { return syscall(SYS_recvfrom, fd, data, bytes, MSG_DONTWAIT, nullptr, nullptr); }
long wait_for(pollfd& what, std::chrono::milliseconds time) { return syscall(SYS_poll, &what, 1UL, static_cast<int>(time.count())); }

enum class Transfer { done, gone, late, aborted };

Transfer transfer(int fd, short direction, void* data, size_t bytes, Clock::time_point deadline, const std::atomic<bool>& aborted) {
    char* at = static_cast<char*>(data);
    while (bytes > 0) {
        if (aborted.load(std::memory_order_relaxed)) return Transfer::aborted;
        pollfd what = {.fd = fd, .events = direction, .revents = 0};
        if (wait_for(what, kTick) <= 0) {
            if (Clock::now() > deadline) return Transfer::late;
            continue;
        }
        const ssize_t n = direction == POLLIN ? receive_some(fd, at, bytes) : send_some(fd, at, bytes);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n <= 0) return Transfer::gone;
        at += n;
        bytes -= static_cast<size_t>(n);
    }
    return Transfer::done;
}

template <class T>
void add(std::vector<char>& sum, const char* more) {
    auto* to = reinterpret_cast<T*>(sum.data());
    for (size_t i = 0; i < sum.size() / sizeof(T); ++i) {
        T value;
        std::memcpy(&value, more + i * sizeof(T), sizeof value);
        to[i] += value;
    }
}

sockaddr_in loopback(int port) {
    sockaddr_in a = {};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    a.sin_port = htons(static_cast<uint16_t>(port));
    return a;
}

}  // namespace

// Kept until the program ends, so that a call on one that is gone can be told.
struct ncclComm {
    int rank = 0, size = 0;
    std::vector<int> sockets;                                 // of rank 0: one for each rank, its own -1; of others: rank 0's
    uint64_t number = 0;                                      // of collectives done: of the timelines, one after another
    std::set<cudaStream_t> streams;                           // that it worked on
    std::shared_ptr<char> graphs = std::make_shared<char>();  // each recorded collective holds it
    std::atomic<bool> aborted = false;
    std::atomic<int> asynchronous = ncclSuccess, running = 0;
    enum class End { none, aborted, destroyed };
    std::atomic<End> end = End::none;
};

namespace {

struct Library {
    std::mutex mutex;
    std::deque<ncclComm> communicators;
    int listener = -1;
    std::deque<std::string> errors;  // all: whoever asked holds a pointer
};
Library& library() {
    static Library l;
    return l;
}

ncclResult_t fail(ncclResult_t code, const std::string& text) {
    const std::lock_guard lock(library().mutex);
    library().errors.push_back(text);
    return code;
}
ncclResult_t misuse(const std::string& text) {
    cuda_on_host::note_misuse(text);
    return fail(ncclInvalidUsage, text);
}

// A call on a communicator that is gone reads freed memory.
bool usable(const ncclComm* c, const char* call) {
    if (c == nullptr) return misuse(std::string(call) + " on no communicator."), false;
    switch (c->end.load()) {
        case ncclComm::End::none:
            return true;
        case ncclComm::End::aborted:
            return misuse(std::string(call) + " on a communicator that was aborted."), false;
        case ncclComm::End::destroyed:
            return misuse(std::string(call) + " on a communicator that was destroyed."), false;
    }
    return false;
}

std::string rank_text(int rank) { return "rank " + std::to_string(rank); }

// Sends what this rank brings, and has in `all` what all brought, in their order. Otherwise: which rank it failed with, and how.
struct Exchanged {
    Transfer how = Transfer::done;
    int other = 0;
    std::string problem = {};  // the ranks' calls differ
};
Exchanged exchange(ncclComm& c, const Call& call, const std::vector<char>& mine, std::vector<char>& all, std::chrono::seconds patience) {
    const Clock::time_point deadline = Clock::now() + patience;
    Exchanged result;
    const auto move = [&](int other, short direction, const void* data, size_t bytes) {
        const int fd = c.sockets[static_cast<size_t>(c.rank == 0 ? other : 0)];
        result.how = transfer(fd, direction, const_cast<void*>(data), bytes, deadline, c.aborted);
        result.other = other;
        return result.how == Transfer::done;
    };
    size_t total = 0;
    std::vector<size_t> begin;
    for (int r = 0; r < c.size; ++r) {
        begin.push_back(total);
        total += call.bytes(r);
    }
    all.resize(total);
    Verdict verdict = {};
    if (c.rank > 0) {
        if (!move(0, POLLOUT, &call, sizeof call) || !move(0, POLLOUT, mine.data(), mine.size())) return result;
        if (!move(0, POLLIN, &verdict, sizeof verdict)) return result;
        result.problem = verdict.problem;
        if (result.problem.empty()) move(0, POLLIN, all.data(), all.size());
        return result;
    }
    std::copy(mine.begin(), mine.end(), all.begin());
    for (int r = 1; r < c.size; ++r) {
        Call theirs;
        if (!move(r, POLLIN, &theirs, sizeof theirs)) return result;
        if (theirs != call) {
            result.problem = "rank 0 calls " + call.text() + ", " + rank_text(r) + " calls " + theirs.text() + ".";
            break;
        }
        if (!move(r, POLLIN, all.data() + begin[static_cast<size_t>(r)], call.bytes(r))) return result;
    }
    std::snprintf(verdict.problem, sizeof verdict.problem, "%s", result.problem.c_str());
    for (int r = 1; r < c.size; ++r) {
        if (!move(r, POLLOUT, &verdict, sizeof verdict)) return result;
        if (result.problem.empty() && !move(r, POLLOUT, all.data(), all.size())) return result;
    }
    return result;
}

void read_device(std::vector<char>& to, const void* from, size_t bytes) {
    if (const char* unwritten = cuda_on_host::first_unwritten(from, bytes))
        cuda_on_host::fail_kernel("reads " + cuda_on_host::describe_unwritten(unwritten));
    to.resize(bytes);
    std::memcpy(to.data(), from, bytes);
}
void write_device(void* to, const char* from, size_t bytes) {
    if (bytes == 0) return;
    std::memcpy(to, from, bytes);
    cuda_on_host::copy_written(to, nullptr, bytes);
}

struct Collective final : cuda_on_host::Body {
    ncclComm& c;
    const void* send;
    void* receive;
    Call call;  // but for its number
    std::shared_ptr<char> graph;

    Collective(ncclComm& communicator, const void* from, void* to, const Call& what)
        : c(communicator), send(from), receive(to), call(what) {}

    void run() const override {
        ++c.running;
        work();
        --c.running;
    }

private:
    // As NCCL's kernels do, it waits until somebody aborts when a rank is gone.
    void wait_for_abort(const std::string& who) const {
        if (cuda_on_host::settings().sees_lost_ranks) c.asynchronous = ncclRemoteError;
        for (const Clock::time_point deadline = Clock::now() + kAbandoned; !c.aborted.load(std::memory_order_relaxed);) {
            if (Clock::now() > deadline)
                return cuda_on_host::fail_kernel("waits for ever: " + who + " is gone, and nobody called ncclCommAbort.");
            std::this_thread::sleep_for(kTick);
        }
    }

    void work() const {
        if (c.aborted.load(std::memory_order_relaxed)) return;
        if (c.end != ncclComm::End::none) return cuda_on_host::fail_kernel("belongs to a communicator that is gone.");
        Call now = call;
        now.number = c.number;
        std::vector<char> mine, all;
        const size_t bytes = call.bytes(c.rank);
        if (bytes > 0) read_device(mine, send, bytes);
        const Exchanged result = exchange(c, now, mine, all, kExchange);
        if (!result.problem.empty()) return cuda_on_host::fail_kernel("differs between the ranks: " + result.problem);
        switch (result.how) {
            case Transfer::done:
                break;
            case Transfer::aborted:
                return;
            case Transfer::gone:
                return wait_for_abort(rank_text(result.other));
            case Transfer::late:
                return cuda_on_host::fail_kernel("waits for ever: " + rank_text(result.other) + " makes no such call.");
        }
        ++c.number;
        const size_t each = call.count * size_of(static_cast<ncclDataType_t>(call.type));
        if (call.kind == Kind::all_reduce) {
            std::vector<char> sum(all.begin(), all.begin() + static_cast<ptrdiff_t>(each));
            for (int r = 1; r < c.size; ++r) {
                const char* more = all.data() + static_cast<size_t>(r) * each;
                if (call.type == ncclFloat32) add<float>(sum, more);
                if (call.type == ncclFloat64) add<double>(sum, more);
                if (call.type == ncclInt32) add<int32_t>(sum, more);
            }
            return write_device(receive, sum.data(), each);
        }
        // In place, what a rank brought is where it belongs.
        for (size_t at = 0; at < all.size(); at += each)
            if (bytes == 0 || static_cast<char*>(receive) + at != send)
                write_device(static_cast<char*>(receive) + at, all.data() + at, each);
    }
};

ncclResult_t enqueue(ncclComm* c, const void* send, void* receive, const Call& call, cudaStream_t stream) {
    if (!usable(c, name_of(call.kind))) return ncclInvalidUsage;
    const auto type = static_cast<ncclDataType_t>(call.type);
    if (size_of(type) == 0 || call.root < 0 || call.root >= c->size)
        return fail(ncclInvalidArgument, call.text() + ": no such type here, or no such rank.");
    if (call.count == 0) return ncclSuccess;
    const size_t each = call.count * size_of(type), received = call.kind == Kind::all_gather ? each * static_cast<size_t>(c->size) : each;
    const char *from = static_cast<const char*>(send), *to = static_cast<const char*>(receive);
    const char* in_place = call.kind == Kind::all_gather ? to + static_cast<size_t>(c->rank) * each : to;
    if (from < to + received && to < from + each && from != in_place)
        return misuse(call.text() + ": its operands overlap, and not as NCCL allows in place.");
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &capture) != cudaSuccess) return fail(ncclUnhandledCudaError, cuda_on_host::last_report());
    auto body = std::make_shared<Collective>(*c, send, receive, call);
    if (capture != cudaStreamCaptureStatusNone) body->graph = c->graphs;
    const cudaLaunchConfig_t config = {
        .gridDim = 1, .blockDim = 1, .dynamicSmemBytes = 0, .stream = stream, .attrs = nullptr, .numAttrs = 0};
    if (cuda_on_host::launch(config, std::move(body), nullptr) != cudaSuccess)
        return fail(ncclUnhandledCudaError, cuda_on_host::last_report());
    c->streams.insert(stream);
    return ncclSuccess;
}

// Both ends wait until no graph holds a collective of the communicator (NCCL 2.26 and newer do).
bool graphs_are_gone(const ncclComm& c, std::chrono::seconds patience) {
    for (const Clock::time_point deadline = Clock::now() + patience; c.graphs.use_count() > 1;) {
        if (Clock::now() > deadline) return false;
        std::this_thread::sleep_for(kTick);
    }
    return true;
}

void close_all(ncclComm& c) {
    for (int& fd : c.sockets)
        if (fd >= 0) close(std::exchange(fd, -1));
}

ncclResult_t accept_all(ncclComm& c, uint64_t nonce, Clock::time_point deadline) {
    Library& l = library();
    c.sockets.assign(static_cast<size_t>(c.size), -1);
    for (int missing = c.size - 1; missing > 0;) {
        pollfd what = {.fd = l.listener, .events = POLLIN, .revents = 0};
        if (wait_for(what, kTick) <= 0) {
            if (Clock::now() > deadline) return fail(ncclSystemError, "not all ranks came to ncclCommInitRank.");
            continue;
        }
        const int fd = accept4(l.listener, nullptr, nullptr, SOCK_CLOEXEC);
        Hello hello = {};
        if (fd < 0) continue;
        const bool ours = transfer(fd, POLLIN, &hello, sizeof hello, Clock::now() + std::chrono::seconds(2), c.aborted) == Transfer::done &&
                          hello.nonce == nonce;
        if (!ours) {
            close(fd);
            continue;
        }
        if (hello.size != c.size || hello.rank <= 0 || hello.rank >= c.size || c.sockets[static_cast<size_t>(hello.rank)] >= 0) {
            close(fd);
            return misuse("ncclCommInitRank: rank " + std::to_string(hello.rank) + " of " + std::to_string(hello.size) +
                          " came, and does not fit to rank 0 of " + std::to_string(c.size) + ".");
        }
        c.sockets[static_cast<size_t>(hello.rank)] = fd;
        --missing;
    }
    close(std::exchange(l.listener, -1));
    return ncclSuccess;
}

ncclResult_t connect_to_first(ncclComm& c, const Id& id) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = loopback(id.port);
    c.sockets = {fd};
    Hello hello = {.nonce = id.nonce, .rank = c.rank, .size = c.size};
    if (fd < 0 || connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
        transfer(fd, POLLOUT, &hello, sizeof hello, Clock::now() + kConnect, c.aborted) != Transfer::done)
        return fail(ncclSystemError, "ncclCommInitRank: rank 0 does not answer.");
    return ncclSuccess;
}

}  // namespace

void cuda_on_host::cut_connections() {
    const std::lock_guard lock(library().mutex);
    for (const ncclComm& c : library().communicators)
        for (const int fd : c.sockets)
            if (fd >= 0) shutdown(fd, SHUT_RDWR);
}

extern "C" {

ncclResult_t ncclGetVersion(int* version) { return *version = NCCL_VERSION_CODE, ncclSuccess; }

const char* ncclGetErrorString(ncclResult_t result) {
    switch (result) {
        case ncclSuccess:
            return "no error";
        case ncclUnhandledCudaError:
            return "unhandled cuda error";
        case ncclSystemError:
            return "unhandled system error";
        case ncclInvalidArgument:
            return "invalid argument";
        case ncclInvalidUsage:
            return "invalid usage";
        case ncclRemoteError:
            return "remote process exited or there was a network error";
        case ncclInProgress:
            return "NCCL operation in progress";
        default:
            return "internal error";
    }
}

const char* ncclGetLastError(ncclComm_t c) {
    if (c != nullptr) usable(c, "ncclGetLastError");
    const std::lock_guard lock(library().mutex);
    return library().errors.empty() ? "" : library().errors.back().c_str();
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* out) {
    Library& l = library();
    if (l.listener >= 0) close(l.listener);
    l.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = loopback(0);
    socklen_t length = sizeof address;
    if (l.listener < 0 || bind(l.listener, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(l.listener, 16) != 0 ||
        getsockname(l.listener, reinterpret_cast<sockaddr*>(&address), &length) != 0)
        return fail(ncclSystemError, std::string("ncclGetUniqueId: ") + std::strerror(errno));
    std::random_device random;
    const Id id = {.nonce = uint64_t{random()} << 32 | random(), .port = ntohs(address.sin_port)};
    static_assert(sizeof id <= sizeof out->internal);
    *out = {};
    std::memcpy(out->internal, &id, sizeof id);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* out, int size, ncclUniqueId unique, int rank) {
    *out = nullptr;
    int device = 0;
    if (size < 1 || rank < 0 || rank >= size) return fail(ncclInvalidArgument, "ncclCommInitRank: no such rank.");
    if (cudaGetDevice(&device) != cudaSuccess) return fail(ncclUnhandledCudaError, cuda_on_host::last_report());
    Id id;
    std::memcpy(&id, unique.internal, sizeof id);
    ncclComm* c = nullptr;
    {
        const std::lock_guard lock(library().mutex);
        c = &library().communicators.emplace_back();
    }
    c->rank = rank;
    c->size = size;
    const ncclResult_t status = rank == 0 ? accept_all(*c, id.nonce, Clock::now() + kConnect) : connect_to_first(*c, id);
    if (status != ncclSuccess) return close_all(*c), status;
    for (const int fd : c->sockets) {
        const int on = 1;
        if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    *out = c;
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t c,
                           cudaStream_t stream) {
    if (op != ncclSum || (type != ncclFloat32 && type != ncclFloat64 && type != ncclInt32))
        return misuse("ncclAllReduce: only sums of f32, f64 and i32 are emulated.");
    return enqueue(c, send, receive, {.kind = Kind::all_reduce, .type = type, .count = count}, stream);
}
ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t c, cudaStream_t stream) {
    return enqueue(c, send, receive, {.kind = Kind::all_gather, .type = type, .count = count}, stream);
}
ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root, ncclComm_t c,
                           cudaStream_t stream) {
    return enqueue(c, send, receive, {.kind = Kind::broadcast, .type = type, .root = root, .count = count}, stream);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t* status) {
    if (!usable(c, "ncclCommGetAsyncError")) return ncclInvalidUsage;
    return *status = static_cast<ncclResult_t>(c->asynchronous.load()), ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t c) {
    if (!usable(c, "ncclCommAbort")) return ncclInvalidUsage;
    c->aborted = true;
    c->end = ncclComm::End::aborted;
    while (c->running > 0) std::this_thread::sleep_for(kTick);
    if (!graphs_are_gone(*c, kGraphs)) return misuse("ncclCommAbort waits for ever: graphs hold collectives of the communicator.");
    close_all(*c);
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t c) {
    if (!usable(c, "ncclCommDestroy")) return ncclInvalidUsage;
    for (const cudaStream_t stream : c->streams) {  // what was queued is done first
        const cudaError_t status = cudaStreamSynchronize(stream);
        if (status == cudaErrorInvalidResourceHandle) misuse("ncclCommDestroy after a stream that the communicator worked on.");
        if (status != cudaSuccess) return fail(ncclUnhandledCudaError, cuda_on_host::last_report());
    }
    if (!graphs_are_gone(*c, {})) return misuse("ncclCommDestroy waits for ever: graphs hold collectives of the communicator.");
    std::vector<char> nothing;
    const Exchanged result = exchange(*c, {.kind = Kind::destroy, .number = c->number}, {}, nothing, kEnd);
    c->end = ncclComm::End::destroyed;
    close_all(*c);
    if (!result.problem.empty()) return misuse("ncclCommDestroy: " + result.problem);
    if (result.how != Transfer::done)
        return misuse("ncclCommDestroy waits for ever: " + rank_text(result.other) +
                      (result.how == Transfer::gone ? " is gone." : " does not call it."));
    return ncclSuccess;
}

}  // extern "C"
