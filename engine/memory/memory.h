// One arena for everything: who needs how much and when, where it lies, and the bytes themselves.
//
// Use: register slots; run everything once inside plan() (the device only counts, and every at() notes that its slot is
// in use at that moment); then allocate(); then at() answers real addresses. A transient slot lives from its first to its last
// use, and slots that never live together share memory: the network's activations need no more than the largest pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/device/device.h"

namespace jem {

struct Slot {
    int id = -1;
    bool valid() const { return id >= 0; }
};

struct MemoryRegion {
    std::string name;
    size_t bytes = 0;
};

class Memory {
public:
    enum class Sharing {
        by_lifetime,
        none,  // every slot on its own: what by_lifetime is checked against
    };

    // Guard bytes behind every slot, to be looked at by check_guards.
    enum class Guards { in_debug_builds, always };

    explicit Memory(Device& device, Sharing sharing = Sharing::by_lifetime, Guards guards = Guards::in_debug_builds);

    // Memory for good, accounted to a region; zeroed.
    Slot keep(const std::string& region, const std::string& name, size_t bytes);
    // Memory from its first to its last use (in order of launches). Its contents are undefined before and after.
    Slot transient(const std::string& name, size_t bytes);
    // Scratch that every caller may overwrite: one block as large as the largest request.
    void need_workspace(size_t bytes);
    std::byte* workspace();

    // Runs body without doing or allocating anything; returns the work that it would have been.
    template <class Body>
    WorkReport plan(Body&& body) {
        planning_ = true;
        device_.begin_dry_run();
        try {
            body();
        } catch (...) {
            device_.end_dry_run();
            planning_ = false;
            throw;
        }
        planning_ = false;
        return device_.end_dry_run();
    }

    // Fixes all offsets. After it nothing can be registered.
    void pack();
    // Packs if need be and takes the arena from the device.
    void allocate();

    std::byte* at(Slot slot);
    size_t bytes(Slot slot) const { return entries_[static_cast<size_t>(slot.id)].bytes; }

    std::vector<MemoryRegion> regions() const;
    size_t arena_bytes() const { return arena_bytes_; }
    // Throws if the guard bytes behind a slot that has its memory for itself were overwritten, naming it.
    void check_guards() const;

    struct Placement {
        std::string name;
        size_t offset, bytes;
        int64_t first_use, last_use;  // both inclusive; first > last: never used
    };
    std::vector<Placement> placements() const;

private:
    struct Entry {
        std::string region, name;
        size_t bytes = 0, offset = 0;
        bool transient = false;
        int64_t first_use = 1, last_use = 0;
    };

    Slot add(Entry entry);
    size_t footprint(size_t bytes) const;
    bool shared(const Entry& e) const { return e.transient && sharing_ == Sharing::by_lifetime; }

    Device& device_;
    Sharing sharing_;
    size_t guard_bytes_;
    std::vector<Entry> entries_;
    size_t workspace_bytes_ = 0;
    Slot workspace_;
    std::unique_ptr<Buffer> arena_;
    size_t arena_bytes_ = 0;
    bool planning_ = false, packed_ = false;
};

}  // namespace jem
