#include "engine/memory/memory.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/check.h"
#include "tests/on_device.h"

namespace jem {
namespace {

constexpr size_t kGuard = 256;  // behind each slot, where there are guards

using Placement = Memory::Placement;

std::string text(Memory::Sharing sharing) { return sharing == Memory::Sharing::none ? ", nothing shared" : ", shared"; }

bool used(const Placement& p) { return p.first_use <= p.last_use; }
bool live_together(const Placement& a, const Placement& b) {
    return used(a) && used(b) && a.first_use <= b.last_use && b.first_use <= a.last_use;
}
bool overlap(const Placement& a, const Placement& b) {
    return a.bytes > 0 && b.bytes > 0 && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}
std::string text(const Placement& p) {
    return p.name + " [" + std::to_string(p.offset) + ", +" + std::to_string(p.bytes) + "), launches " + std::to_string(p.first_use) +
           " to " + std::to_string(p.last_use);
}

// One launch, as far as the clock of lifetimes knows.
void launch(Device& device) { device.ops().fill_zero({nullptr, device.real_type(), 0}); }

struct Planned {
    int64_t first = 1, last = 0;  // inclusive
};

// Slots of random sizes with random lifetimes, several of them never used; returns when each transient one lives.
std::vector<Planned> random_plan(Device& device, Memory& memory, uint64_t seed) {
    TestData data(seed);
    const auto launches = 1 + data.index(30);
    std::vector<Slot> slots;
    std::vector<Planned> lives;
    for (int64_t i = 0; i < 1 + data.index(40); ++i) {
        const auto bytes = static_cast<size_t>(data.index(4) == 0 ? data.index(3) : data.index(5000));
        if (data.index(4) == 0) memory.keep("region " + std::to_string(data.index(3)), "kept " + std::to_string(i), bytes);
        slots.push_back(memory.transient("transient " + std::to_string(i), bytes));
        Planned p;
        if (data.index(8) != 0) {
            p.first = data.index(launches);
            p.last = p.first + data.index(launches - p.first);
        }
        lives.push_back(p);
    }
    memory.need_workspace(static_cast<size_t>(data.index(3000)));
    const int64_t start = device.launches();
    memory.plan([&] {
        for (int64_t now = 0; now < launches; ++now) {
            // In some other order than they were registered in; in the middle of their lives slots are used now and then.
            for (size_t i = slots.size(); i-- > 0;) {
                const Planned& p = lives[i];
                const bool alive = now >= p.first && now <= p.last;
                if (alive && (now == p.first || now == p.last || data.index(2) == 0)) memory.at(slots[i]);
            }
            launch(device);
        }
    });
    for (Planned& p : lives)
        if (p.first <= p.last) p.first += start, p.last += start;
    return lives;
}

TEST_CASE("slots_that_live_at_the_same_time_never_overlap") {
    const auto device = make_reference_device(DType::f32);
    for (const Memory::Sharing sharing : {Memory::Sharing::by_lifetime, Memory::Sharing::none})
        for (uint64_t seed = 1; seed <= 300; ++seed) {
            INFO("seed " << seed << text(sharing));
            Memory memory(*device, sharing);
            const std::vector<Planned> lives = random_plan(*device, memory, seed);
            memory.pack();
            const std::vector<Placement> placements = memory.placements();
            size_t transient = 0;
            for (size_t i = 0; i < placements.size(); ++i) {
                const Placement& p = placements[i];
                if (p.name.starts_with("transient")) {
                    const Planned& want = lives[transient++];
                    if (p.first_use != want.first || p.last_use != want.last)
                        FAIL_CHECK(text(p) << ", want " << want.first << " to " << want.last);
                }
                const bool placed = used(p) || sharing == Memory::Sharing::none;
                if (placed && p.offset + p.bytes > memory.arena_bytes()) FAIL_CHECK(text(p) << " ends behind the arena");
                if (placed && p.offset % 256 != 0) FAIL_CHECK(text(p) << " is not aligned");
                for (size_t j = 0; j < i; ++j) {
                    const Placement& q = placements[j];
                    const bool together = sharing == Memory::Sharing::none || live_together(p, q);
                    if (together && overlap(p, q)) FAIL_CHECK(text(p) << " overlaps " << text(q));
                }
            }
            CHECK(transient == lives.size());
        }
}

TEST_CASE("regions_add_up_to_the_arena") {
    const auto device = make_reference_device(DType::f32);
    for (const Memory::Sharing sharing : {Memory::Sharing::by_lifetime, Memory::Sharing::none})
        for (const Memory::Guards guards : {Memory::Guards::in_debug_builds, Memory::Guards::always})
            for (uint64_t seed = 1; seed <= 100; ++seed) {
                INFO("seed " << seed << text(sharing));
                Memory memory(*device, sharing, guards);
                random_plan(*device, memory, seed);
                memory.pack();
                size_t sum = 0;
                for (const MemoryRegion& r : memory.regions()) sum += r.bytes;
                CHECK(sum == memory.arena_bytes());
            }
}

TEST_CASE("regions_are_named_and_count_each_slot_once") {
    const auto device = make_reference_device(DType::f32);
    Memory memory(*device, Memory::Sharing::by_lifetime, Memory::Guards::always);
    memory.keep("parameters", "a", 1000);
    memory.keep("gradients", "b", 1);
    memory.keep("parameters", "c", 256);
    memory.need_workspace(700);
    memory.need_workspace(300);
    memory.pack();
    const auto regions = memory.regions();
    const auto bytes_of = [&](const std::string& name) {
        for (const MemoryRegion& r : regions)
            if (r.name == name) return r.bytes;
        return size_t{0};
    };
    CHECK(regions.size() == 3);
    CHECK(bytes_of("parameters") == 1024 + 256 + 2 * kGuard);
    CHECK(bytes_of("gradients") == 256 + kGuard);
    CHECK(bytes_of("workspace") == 768 + kGuard);
}

TEST_CASE("transient_slots_that_never_live_together_share_memory") {
    const auto device = make_reference_device(DType::f32);
    const auto arena = [&](Memory::Sharing sharing) {
        Memory memory(*device, sharing);
        const Slot a = memory.transient("a", 10000), b = memory.transient("b", 10000), c = memory.transient("c", 10000);
        memory.plan([&] {
            // b reads a, c reads b: a and c never live together.
            memory.at(a);
            launch(*device);
            memory.at(a), memory.at(b);
            launch(*device);
            memory.at(b), memory.at(c);
            launch(*device);
        });
        memory.allocate();
        if (sharing == Memory::Sharing::by_lifetime) {
            CHECK(memory.at(a) == memory.at(c));
            CHECK(memory.at(a) != memory.at(b));
        }
        return memory.arena_bytes();
    };
    // 10240 bytes each, and in debug builds their guards
    CHECK(arena(Memory::Sharing::by_lifetime) < 3 * 10240);
    CHECK(arena(Memory::Sharing::none) >= 3 * 10240);
}

TEST_CASE("a_chain_of_layers_needs_no_more_than_its_largest_neighbours") {
    const auto device = make_reference_device(DType::f32);
    Memory memory(*device, Memory::Sharing::by_lifetime, Memory::Guards::always);
    std::vector<Slot> slots(50);
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = memory.transient("layer " + std::to_string(i), 4096);
    memory.plan([&] {
        for (size_t i = 0; i + 1 < slots.size(); ++i) {
            memory.at(slots[i]), memory.at(slots[i + 1]);
            launch(*device);
        }
    });
    memory.pack();
    CHECK(memory.arena_bytes() == 2 * (4096 + kGuard) + kGuard);  // two layers, and the empty workspace's guard
}

TEST_CASE("use_of_memory_that_was_not_planned_throws") {
    const auto device = make_reference_device(DType::f32);
    Memory memory(*device);
    const Slot kept = memory.keep("parameters", "kept", 100), planned = memory.transient("planned", 100),
               forgotten = memory.transient("forgotten", 100);
    CHECK_THROWS_AS(memory.at(kept), std::logic_error);  // not allocated yet
    memory.plan([&] { memory.at(planned); });
    memory.allocate();
    CHECK(memory.at(kept) != nullptr);
    CHECK(memory.at(planned) != nullptr);
    CHECK_THROWS_AS(memory.at(forgotten), std::logic_error);
    CHECK_THROWS_AS(memory.at(Slot{}), std::out_of_range);
    CHECK_THROWS_AS(memory.keep("parameters", "late", 1), std::logic_error);
    CHECK_THROWS_AS(memory.transient("late", 1), std::logic_error);
    CHECK_THROWS_AS(memory.need_workspace(1), std::logic_error);
}

TEST_CASE("planning_runs_nothing_and_survives_an_exception") {
    const auto device = make_reference_device(DType::f32);
    Memory memory(*device);
    const Slot slot = memory.transient("slot", 64);
    CHECK_THROWS_AS(memory.plan([&] {
        memory.at(slot);
        throw std::runtime_error("on purpose");
    }),
                    std::runtime_error);
    // The device runs ops again.
    OnDevice m(*device);
    const Array a = m.real({1, 2});
    device->ops().fill_zero(a);
    check_equal("a", m.read(a), {0, 0});
    const WorkReport report = memory.plan([&] {
        device->ops().fill_zero({memory.at(slot), DType::f32, 16});
        device->ops().fill_zero({memory.workspace(), DType::f32, 16});
    });
    CHECK(report.at("fill_zero").launches == 2);
}

TEST_CASE("kept_memory_is_zero_and_every_slot_can_be_written_to_its_end") {
    const auto device = make_cpu_device({.threads = 1});
    Memory memory(*device);
    random_plan(*device, memory, 5);
    const Slot extra = memory.keep("parameters", "extra", 999);
    memory.need_workspace(5000);
    memory.allocate();
    const std::vector<std::byte> zeros(999), ones(5000, std::byte{1});
    CHECK(std::memcmp(memory.at(extra), zeros.data(), zeros.size()) == 0);
    CHECK(memory.bytes(extra) == 999);
    std::memcpy(memory.at(extra), ones.data(), 999);
    std::memcpy(memory.workspace(), ones.data(), 5000);
    CHECK_NOTHROW(memory.check_guards());
}

TEST_CASE("guard_bytes_catch_an_overrun_and_name_the_slot") {
    const auto device = make_reference_device(DType::f32);
    for (const size_t bytes : {size_t{256}, size_t{1000}, size_t{0}}) {
        Memory memory(*device, Memory::Sharing::none, Memory::Guards::always);
        memory.keep("parameters", "before", 100);
        const Slot slots[] = {memory.keep("gradients", "conv1", bytes), memory.transient("activation", bytes)};
        memory.keep("parameters", "behind", 100);
        memory.allocate();
        memory.check_guards();
        for (const Slot slot : slots)
            // The byte behind the slot, the one behind its aligned end, and the last of its guard.
            for (const size_t beyond : {bytes, (bytes + 255) / 256 * 256, (bytes + 255) / 256 * 256 + 255}) {
                INFO(bytes << " bytes, written at " << beyond);
                std::byte* at = memory.at(slot) + beyond;
                const std::byte held = *at;
                *at = std::byte{0};
                std::string message;
                try {
                    memory.check_guards();
                } catch (const std::logic_error& e) {
                    message = e.what();
                }
                CHECK(message.find(slot.id == slots[0].id ? "gradients/conv1" : "activation") != std::string::npos);
                *at = held;
                CHECK_NOTHROW(memory.check_guards());
            }
    }
}

TEST_CASE("guard_bytes_of_kept_slots_survive_what_shared_slots_write") {
    const auto device = make_reference_device(DType::f32);
    Memory memory(*device, Memory::Sharing::by_lifetime, Memory::Guards::always);
    const Slot kept = memory.keep("parameters", "kept", 100);
    const Slot a = memory.transient("a", 300), b = memory.transient("b", 700);
    memory.need_workspace(77);
    memory.plan([&] {
        memory.at(a);
        launch(*device);
        memory.at(b);
    });
    memory.allocate();
    std::memset(memory.at(kept), 1, 100);
    std::memset(memory.workspace(), 2, 77);
    std::memset(memory.at(a), 3, 300);
    std::memset(memory.at(b), 4, 700);
    CHECK_NOTHROW(memory.check_guards());
    memory.at(kept)[100] = std::byte{0};
    CHECK_THROWS_AS(memory.check_guards(), std::logic_error);
}

}  // namespace
}  // namespace jem
