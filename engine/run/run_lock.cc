#include "engine/run/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <string>
#include <system_error>
#include <thread>

#include "data/input_error.h"

namespace jem {
namespace {

constexpr int kTries = 5;
constexpr std::chrono::milliseconds kBetweenTries{20};

// Who holds the lock, in words: its file says it.
std::string holder(int descriptor) {
    std::array<char, 300> text;
    const ssize_t size = pread(descriptor, text.data(), text.size(), 0);
    return size > 0 ? std::string(text.data(), static_cast<size_t>(size)) : "another process";
}

std::string this_process() {
    std::array<char, 256> host = {};
    gethostname(host.data(), host.size() - 1);
    return "process " + std::to_string(getpid()) + " on " + host.data();
}

}  // namespace

RunLock::RunLock(const std::filesystem::path& folder) : RunLock(folder, ::flock) {}

RunLock::RunLock(const std::filesystem::path& folder, Flock lock) {
    const std::filesystem::path file = folder / ".lock";  // it stays: were it removed, two could each lock a file of this name
    descriptor_ = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor_ < 0)
        throw InputError("cannot write '" + file.string() + "' (" + std::generic_category().message(errno) +
                         "). Choose a folder that can be written.");
    int result = 0;
    for (int tries = 0;;) {
        result = lock(descriptor_, LOCK_EX | LOCK_NB);
        if (result == 0 || (errno != EINTR && errno != EWOULDBLOCK)) break;
        if (errno == EINTR) continue;
        if (++tries > kTries) break;
        std::this_thread::sleep_for(kBetweenTries);  // `jem_engine watch` asks for the lock for a moment: no owner
    }
    if (result != 0 && errno == EWOULDBLOCK) {
        const std::string other = holder(descriptor_);
        close(descriptor_);
        throw InputError(folder.string() + " is in use (" + other + " trains in it). Wait until that ends, or choose another --out.");
    }
    held_ = result == 0;
    if (!held_) return;
    const std::string text = this_process();
    // only for the message above: a full disk keeps nobody from training
    if (ftruncate(descriptor_, 0) != 0 || pwrite(descriptor_, text.data(), text.size(), 0) < 0) return;
}

RunLock::~RunLock() {
    if (descriptor_ >= 0) close(descriptor_);
}

}  // namespace jem
