// Who may write into a run's folder.
#pragma once

#include <filesystem>
#include <string>

namespace jem {

/// The lock of a run's folder, held while this lives; the system lets go of it when the process ends, however it ends.
class RunLock {
public:
    /// What flock(2) does, of a descriptor and an operation.
    using Flock = int (*)(int, int);

    /// InputError where another process holds it, or where the folder cannot be written.
    explicit RunLock(const std::filesystem::path& folder);
    RunLock(const std::filesystem::path& folder, Flock lock);
    ~RunLock();
    RunLock(const RunLock&) = delete;
    RunLock& operator=(const RunLock&) = delete;

    /// False where the file system has no locks: then nothing keeps a second process out.
    bool held() const { return held_; }

private:
    int descriptor_ = -1;
    bool held_ = false;
};

/// Who holds the lock of a run's folder, asked from outside.
struct LockOwner {
    enum class Process { running, gone, unknown };  // unknown: the file system has no locks
    Process process = Process::unknown;
    std::string words;  // "process 12 on host"; may be empty
};
/// A lock that somebody holds is asked for in vain and stays whose it is. One that nobody holds is had, shared with others who ask, for a
/// few microseconds: RunLock asks again for longer than that.
LockOwner owner_of_lock(const std::filesystem::path& folder);

}  // namespace jem
