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

constexpr const char* kFile = ".lock";  // it stays: were it removed, two could each lock a file of this name

// Who holds the lock, in words: its file says it. Empty where it says nothing.
std::string holder(int descriptor) {
    std::array<char, 300> text;
    const ssize_t size = pread(descriptor, text.data(), text.size(), 0);
    return size > 0 ? std::string(text.data(), static_cast<size_t>(size)) : "";
}

// flock(2), through interruptions
int asked(RunLock::Flock lock, int descriptor, int operation) {
    int result = 0;
    do result = lock(descriptor, operation | LOCK_NB);
    while (result != 0 && errno == EINTR);
    return result;
}

std::string this_process() {
    std::array<char, 256> host = {};
    gethostname(host.data(), host.size() - 1);
    return "process " + std::to_string(getpid()) + " on " + host.data();
}

}  // namespace

RunLock::RunLock(const std::filesystem::path& folder) : RunLock(folder, ::flock) {}

RunLock::RunLock(const std::filesystem::path& folder, Flock lock) {
    const std::filesystem::path file = folder / kFile;
    descriptor_ = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor_ < 0)
        throw InputError("cannot write '" + file.string() + "' (" + std::generic_category().message(errno) +
                         "). Choose a folder that can be written.");
    int result = asked(lock, descriptor_, LOCK_EX);
    for (int tries = 0; result != 0 && errno == EWOULDBLOCK && tries < kTries; ++tries) {
        std::this_thread::sleep_for(kBetweenTries);  // owner_of_lock() has it for a moment
        result = asked(lock, descriptor_, LOCK_EX);
    }
    if (result != 0 && errno == EWOULDBLOCK) {
        const std::string other = holder(descriptor_);
        close(descriptor_);
        throw InputError(folder.string() + " is in use (" + (other.empty() ? "another process" : other) +
                         " trains in it). Wait until that ends, or choose another --out.");
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

LockOwner owner_of_lock(const std::filesystem::path& folder) {
    using Process = LockOwner::Process;
    const int descriptor = open((folder / kFile).c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return {errno == ENOENT ? Process::gone : Process::unknown, ""};  // 0.1.0 had no lock, nor has a copy
    const int result = asked(::flock, descriptor, LOCK_SH);
    LockOwner owner = {result == 0 ? Process::gone : errno == EWOULDBLOCK ? Process::running : Process::unknown, ""};
    if (owner.process == Process::running) owner.words = holder(descriptor);
    close(descriptor);
    return owner;
}

}  // namespace jem
