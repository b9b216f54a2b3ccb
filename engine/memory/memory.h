// One arena for everything: who needs how much and when, where it lies, and the bytes themselves.
//
// Use: register slots; run everything once inside plan() (the device only counts, and every at() notes that its slot is
// in use at that moment); then allocate(); then at() answers real addresses. A transient slot lives from its first to its last
// use, and slots that never live together share memory: the network's activations need no more than the largest pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
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
    // Scratch that every caller may overwrite: one block as large as the largest request. Of those on the side queue another one.
    void need_workspace(size_t bytes);
    void need_side_workspace(size_t bytes);
    std::byte* workspace();

    // Device::begin_side and the others. What at() answers from the first on, or has answered since the launch before it, lives until the
    // third: the planner's clock counts launches, and of two that run beside each other neither is the earlier one.
    void begin_side();
    void end_side() noexcept;
    void join_side();

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
            side_since_.reset();
            throw;
        }
        planning_ = false;
        const WorkReport report = device_.end_dry_run();
        if (side_since_) throw std::logic_error("What was planned leaves work on the side queue that nobody waits for.");
        return report;
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
    size_t workspace_bytes_ = 0, side_workspace_bytes_ = 0;
    Slot workspace_, side_workspace_;
    bool on_side_ = false;
    std::optional<int64_t> side_since_;  // launches; none: everything is joined
    std::unique_ptr<Buffer> arena_;
    size_t arena_bytes_ = 0;
    bool planning_ = false, packed_ = false;
};

// What is queued while it lives goes to the side queue.
class OnSide {
public:
    explicit OnSide(Memory& memory) : memory_(memory) { memory_.begin_side(); }
    OnSide(const OnSide&) = delete;  // ends once
    OnSide& operator=(const OnSide&) = delete;
    ~OnSide() { memory_.end_side(); }

private:
    Memory& memory_;
};

}  // namespace jem
