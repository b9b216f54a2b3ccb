#include "engine/memory/memory.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace jem {
namespace {

constexpr size_t kAlignment = 256;  // widest vector access, and a cache line's multiple on every device
constexpr size_t kGuardBytes = 256;
#ifdef NDEBUG
constexpr bool kDebugBuild = false;
#else
constexpr bool kDebugBuild = true;
#endif
constexpr std::byte kGuardPattern{0xA5};
// What at() answers while planning: no address that anyone could use by mistake.
constexpr size_t kPlanningBase = size_t{1} << 46;

constexpr const char* kTransientRegion = "activations";

}  // namespace

Memory::Memory(Device& device, Sharing sharing, Guards guards)
    : device_(device), sharing_(sharing), guard_bytes_(kDebugBuild || guards == Guards::always ? kGuardBytes : 0) {}

size_t Memory::footprint(size_t bytes) const { return (bytes + kAlignment - 1) / kAlignment * kAlignment + guard_bytes_; }

Slot Memory::add(Entry entry) {
    if (packed_) throw std::logic_error("Memory for " + entry.name + " was asked for after the plan was packed.");
    entries_.push_back(std::move(entry));
    return {static_cast<int>(entries_.size()) - 1};
}

Slot Memory::keep(const std::string& region, const std::string& name, size_t bytes) {
    return add({.region = region, .name = name, .bytes = bytes});
}

Slot Memory::transient(const std::string& name, size_t bytes) {
    return add({.region = kTransientRegion, .name = name, .bytes = bytes, .transient = true});
}

void Memory::need_workspace(size_t bytes) {
    if (packed_) throw std::logic_error("Workspace was asked for after the plan was packed.");
    workspace_bytes_ = std::max(workspace_bytes_, bytes);
}

void Memory::need_side_workspace(size_t bytes) {
    if (packed_) throw std::logic_error("Workspace was asked for after the plan was packed.");
    side_workspace_bytes_ = std::max(side_workspace_bytes_, bytes);
}

std::byte* Memory::workspace() {
    if (planning_) return reinterpret_cast<std::byte*>(kPlanningBase);
    return at(on_side_ ? side_workspace_ : workspace_);
}

void Memory::begin_side() {
    if (!device_.has_side_queue()) return;
    device_.begin_side();
    on_side_ = true;
    if (!side_since_) side_since_ = device_.launches();
}

void Memory::end_side() noexcept {
    if (std::exchange(on_side_, false)) device_.end_side();
}

void Memory::join_side() {
    if (!side_since_) return;
    device_.join_side();
    const int64_t since = *std::exchange(side_since_, std::nullopt);
    if (!planning_) return;
    const int64_t last = device_.launches() - 1;
    for (Entry& e : entries_)
        if (e.last_use >= since) e.last_use = std::max(e.last_use, last);
}

void Memory::pack() {
    if (packed_) return;
    workspace_ = keep("workspace", "workspace", workspace_bytes_);
    if (device_.has_side_queue()) side_workspace_ = keep("workspace", "workspace of the side queue", side_workspace_bytes_);
    packed_ = true;
    // Permanent slots one after another; behind them the transient ones, largest first, each at the lowest offset where
    // nothing lies that lives at the same time.
    size_t end = 0;
    for (Entry& e : entries_) {
        if (e.transient && sharing_ == Sharing::by_lifetime) continue;
        e.offset = end;
        end += footprint(e.bytes);
    }
    const size_t base = end;
    std::vector<size_t> order;
    for (size_t i = 0; i < entries_.size(); ++i)
        if (entries_[i].transient && sharing_ == Sharing::by_lifetime && entries_[i].first_use <= entries_[i].last_use) order.push_back(i);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return entries_[a].bytes > entries_[b].bytes; });
    std::vector<const Entry*> placed;  // by offset
    for (const size_t i : order) {
        Entry& e = entries_[i];
        size_t offset = base;
        for (const Entry* other : placed) {
            if (other->last_use < e.first_use || e.last_use < other->first_use) continue;
            if (offset + footprint(e.bytes) <= other->offset) break;
            offset = std::max(offset, other->offset + footprint(other->bytes));
        }
        e.offset = offset;
        end = std::max(end, offset + footprint(e.bytes));
        placed.insert(
            std::upper_bound(placed.begin(), placed.end(), &e, [](const Entry* a, const Entry* b) { return a->offset < b->offset; }), &e);
    }
    arena_bytes_ = end;
}

void Memory::allocate() {
    pack();
    arena_ = device_.allocate(arena_bytes_);
    if (guard_bytes_ == 0) return;
    const std::vector<std::byte> pattern(guard_bytes_ + kAlignment, kGuardPattern);
    for (const Entry& e : entries_)
        if (!shared(e)) device_.upload(arena_->data() + e.offset + e.bytes, pattern.data(), footprint(e.bytes) - e.bytes);
}

std::byte* Memory::at(Slot slot) {
    Entry& e = entries_.at(static_cast<size_t>(slot.id));
    if (planning_) {
        const int64_t now = device_.launches();
        if (e.first_use > e.last_use) e.first_use = now;
        e.last_use = now;
        return reinterpret_cast<std::byte*>(kPlanningBase);
    }
    if (arena_ == nullptr) throw std::logic_error("Memory of " + e.name + " was asked for before the arena was allocated.");
    if (e.transient && sharing_ == Sharing::by_lifetime && e.first_use > e.last_use)
        throw std::logic_error("Memory of " + e.name + " is used, but was not when memory was planned.");
    return arena_->data() + e.offset;
}

std::vector<MemoryRegion> Memory::regions() const {
    std::vector<MemoryRegion> out;
    size_t first = SIZE_MAX, last = 0;
    for (const Entry& e : entries_) {
        if (e.transient && sharing_ == Sharing::by_lifetime) {
            if (e.first_use > e.last_use) continue;
            first = std::min(first, e.offset);
            last = std::max(last, e.offset + footprint(e.bytes));
            continue;
        }
        const auto found = std::find_if(out.begin(), out.end(), [&](const MemoryRegion& r) { return r.name == e.region; });
        if (found == out.end())
            out.push_back({e.region, footprint(e.bytes)});
        else
            found->bytes += footprint(e.bytes);
    }
    if (last > 0) out.push_back({kTransientRegion, last - first});
    return out;
}

std::vector<Memory::Placement> Memory::placements() const {
    std::vector<Placement> out;
    for (const Entry& e : entries_) {
        const bool forever = !e.transient;
        out.push_back({e.name, e.offset, e.bytes, forever ? INT64_MIN : e.first_use, forever ? INT64_MAX : e.last_use});
    }
    return out;
}

void Memory::check_guards() const {
    if (guard_bytes_ == 0 || arena_ == nullptr) return;
    std::vector<std::byte> guard;
    for (const Entry& e : entries_) {
        if (shared(e)) continue;  // another slot may lie there at another time
        guard.resize(footprint(e.bytes) - e.bytes);
        device_.download(guard.data(), arena_->data() + e.offset + e.bytes, guard.size());
        if (!std::all_of(guard.begin(), guard.end(), [](std::byte b) { return b == kGuardPattern; }))
            throw std::logic_error("Something wrote past the end of " + e.region + "/" + e.name + ".");
    }
}

}  // namespace jem
