// Who may write into a run's folder.
#pragma once

#include <filesystem>

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

}  // namespace jem
