// Two ranks, a process each, on emulated GPUs: the project's own collectives, launch discovery and sockets, on the emulation's NCCL.
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/emulation/device.h"
#include "tests/emulation/processes.h"
#include "tests/engine/ranks/collectives.h"
#include "tests/engine/training/job.h"

namespace jem {
namespace {

// What every rank holds, in the ranks' order.
Values gathered(Ranks& ranks, const Values& mine) {
    Values all(mine.size() * static_cast<size_t>(ranks.size()));
    std::copy(mine.begin(), mine.end(), all.begin() + static_cast<ptrdiff_t>(mine.size()) * ranks.rank());
    ranks.all_gather(all.data(), mine.size() * sizeof(double));
    return all;
}

std::vector<Outcome> gathered(Ranks& ranks, const Outcome& mine) {
    std::vector<Outcome> all(static_cast<size_t>(ranks.size()));
    for (Values Outcome::*part : {&Outcome::weights, &Outcome::velocity, &Outcome::statistics, &Outcome::buffer, &Outcome::scalars}) {
        const Values values = gathered(ranks, mine.*part);
        const size_t each = (mine.*part).size();
        for (size_t r = 0; r < all.size(); ++r)
            all[r].*part =
                Values(values.begin() + static_cast<ptrdiff_t>(r * each), values.begin() + static_cast<ptrdiff_t>((r + 1) * each));
    }
    return all;
}

void check_identical(const Outcome& got, const Outcome& want) {
    check_equal("weights", got.weights, want.weights);
    check_equal("velocity", got.velocity, want.velocity);
    check_equal("running statistics", got.statistics, want.statistics);
    check_equal("buffer", got.buffer, want.buffer);
    check_equal("scalars", got.scalars, want.scalars);
}

// The joined device of a rank, for one test.
class RankDevice {
public:
    RankDevice(Ranks& ranks, CudaPrecision precision, const cuda_on_host::Settings& machine = {})
        : device_(std::in_place, precision, machine) {
        (*device_)->join(ranks);
    }
    RankDevice(const RankDevice&) = delete;  // the machine is one
    RankDevice& operator=(const RankDevice&) = delete;
    ~RankDevice() {
        device_.reset();
        const std::string misuses = cuda_on_host::misuses();
        CHECK_MESSAGE(misuses.empty(), misuses);
    }
    Device& operator*() { return **device_; }
    Device* operator->() { return &**device_; }

private:
    std::optional<EmulatedDevice> device_;
};

// How far two ranks may be from one. In f32 sums in another order, 1e-5 of a value at most, until a LeakyReLU's input or SGLD's clamp falls
// on the other side of its kink, which moves gradients by per cents; in bf16 a rounding of an activation to the next number is enough.
// Measured where nothing fell on the other side in f32: losses 8e-6, momentum 3e-7; in bf16 8e-3, and 0.1 or 0.3 by how values happen to
// round. Without the other rank's gradient the momentum is off by 0.6 to 0.9.
struct Limits {
    double scalars, momentum, others;
};
constexpr Limits kF32{1e-3, 0.05, 0.01}, kBf16{0.05, 0.45, 0.03};

struct Variant {
    const char* name;
    CudaPrecision precision;
    Settings settings;
    Limits limits;
};

Settings job_settings() {
    Settings s = small_job();
    s.sgld_steps = cuda_on_host::checks_accesses() ? 2 : 3;
    return s;
}
// More than one use what the first exchanged; where every access is checked one must do.
int64_t iterations(int64_t plain) { return cuda_on_host::checks_accesses() ? 1 : plain; }

// No more than it takes to wait for another rank.
Settings short_job() {
    Settings s = small_job();
    s.p_x_weight = 0;
    s.sgld_steps = 0;
    s.sam = SamForm::none;
    return s;
}

// Batch norm over the whole job and no norm, SAM and none; where every access is checked, one of the four.
std::vector<Variant> variants() {
    const Settings batch = job_settings();
    Settings none = batch;
    none.norm = NormKind::none;
    none.lr = 0.01;
    Settings plain = batch;
    plain.sam = SamForm::none;
    Settings rounded = batch;
    rounded.sgld_steps = 1;  // each step's gradient comes in the activations' type: what two orders of sums make of it grows by the step
    std::vector<Variant> all = {{"batch norm, SAM", CudaPrecision::f32, batch, kF32},
                                {"no norm, SAM", CudaPrecision::f32, none, kF32},
                                {"batch norm, no SAM", CudaPrecision::f32, plain, kF32},
                                {"batch norm, SAM, bf16", CudaPrecision::bf16, rounded, kBf16}};
    if (cuda_on_host::checks_accesses()) all.resize(1);
    return all;
}

Outcome train_together(Ranks& ranks, CudaPrecision precision, const Settings& s, const JobOptions& options = {}) {
    RankDevice device(ranks, precision);
    return train(*device, ranks, s, options);
}

void check_near(const std::string& what, const Values& got, const Values& want, double limit) {
    double difference = 0, norm = 0;
    REQUIRE(got.size() == want.size());
    for (size_t i = 0; i < want.size(); ++i) {
        difference += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    CHECK_MESSAGE(std::sqrt(difference) <= limit * std::sqrt(norm), what, ": |got - want| is ", std::sqrt(difference / norm),
                  " of |want|, at most ", limit, " was expected");
}

constexpr int64_t kPlanned = 1;   // the iteration in front of which a rank dies
constexpr double kPatience = 60;  // seconds: the watch looks every second, instrumented iterations take some

double seconds_of(const std::function<void()>& body) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void check_that_the_other_is_missed(Ranks& ranks, const cuda_on_host::Settings& machine) {
    RankDevice device(ranks, CudaPrecision::f32, machine);
    const Settings s = short_job();
    const auto go_on = [&] {
        train(*device, ranks, s, {.before = [&](int64_t iteration) {
            if (iteration == kPlanned && ranks.rank() == 1) die_as_planned();
        }});
    };
    CHECK(seconds_of([&] { CHECK_THROWS_AS(go_on(), RankLost); }) < kPatience);
    CHECK_THROWS_AS(device->communicator().check(), RankLost);
}

}  // namespace

TEST_CASE("two_ranks_on_emulated_gpus_give_one_ranks_iterations") {
    on_processes(2, [](Ranks& ranks) {
        const std::vector<Variant> all = variants();
        std::vector<Outcome> together;
        for (const Variant& v : all) {
            INFO(std::string(v.name));
            together.push_back(train_together(ranks, v.precision, v.settings, {.iterations = iterations(3)}));
            check_same_everywhere(gathered(ranks, together.back()));
        }
        // What both hold one compares, while the other does so for another variant.
        for (auto i = static_cast<size_t>(ranks.rank()); i < all.size(); i += static_cast<size_t>(ranks.size())) {
            const Variant& v = all[i];
            INFO(std::string(v.name));
            EmulatedDevice device(v.precision);
            const Outcome one = train(*device, lone_rank(), v.settings, {.iterations = iterations(3)});
            check_close("scalars", together[i].scalars, one.scalars, {v.limits.scalars, v.limits.scalars});
            check_near("momentum", together[i].velocity, one.velocity, v.limits.momentum);
            check_near("weights", together[i].weights, one.weights, v.limits.others);
            check_near("running statistics", together[i].statistics, one.statistics, v.limits.others);
            check_near("replay buffer", together[i].buffer, one.buffer, v.limits.others);
        }
    });
}

TEST_CASE("two_ranks_that_perturb_by_their_own_gradients_hold_the_same_weights") {
    on_processes(2, [](Ranks& ranks) {
        Settings s = job_settings();
        s.norm_statistics = NormStatistics::rank;  // the default, whose running statistics are broadcast
        if (cuda_on_host::checks_accesses()) s.p_x_weight = 0, s.sgld_steps = 0;
        Settings own = s;
        own.sam_local = true;
        const Outcome mine = train_together(ranks, CudaPrecision::f32, own, {.iterations = iterations(2)});
        check_same_everywhere(gathered(ranks, mine));
        if (cuda_on_host::checks_accesses()) return;
        const Outcome joint = train_together(ranks, CudaPrecision::f32, s, {.iterations = 2});
        check_same_everywhere(gathered(ranks, joint));
        CHECK(mine.weights != joint.weights);
    });
}

TEST_CASE("two_ranks_replay_what_they_recorded_bit_for_bit_as_eager_calls") {
    on_processes(2, [](Ranks& ranks) {
        std::vector<Variant> some = variants();
        if (some.size() > 1)
            some.erase(some.begin() + 1, some.end() - 1);  // one of each precision
        else
            some[0].settings.sam = SamForm::none;
        for (const Variant& v : some) {
            INFO(std::string(v.name));
            const Outcome replayed = train_together(ranks, v.precision, v.settings, {.iterations = iterations(2)});
            const Outcome eager =
                train_together(ranks, v.precision, v.settings, {.iterations = iterations(2), .execution = Execution::eager});
            check_identical(replayed, eager);
        }
    });
}

TEST_CASE("collectives_of_emulated_gpus_are_recorded_and_replayed_and_only_counted_in_a_dry_run") {
    on_processes(2, [](Ranks& ranks) {
        for (const uint64_t seed : {0, 1, 2}) {
            RankDevice device(ranks, CudaPrecision::f32, {.seed = seed});
            check_recorded_collectives(*device);
        }
    });
}

TEST_CASE("three_emulated_gpus_sum_gather_and_broadcast") {
    on_processes(3, [](Ranks& ranks) {
        RankDevice device(ranks, CudaPrecision::f32);
        OnDevice memory(*device);
        Communicator& communicator = device->communicator();
        const double mine = ranks.rank() + 1;
        const Array sum = memory.real({mine, 10 * mine, -1}), all = memory.unwritten(6), first = memory.real({mine});
        memory.write(communicator.own(all), {mine, -mine});
        const std::vector<double> wide = {mine, 0x1p-50 * mine};  // f64 keeps its precision
        const Array f64{memory.raw(wide.data(), wide.size() * sizeof(double)), DType::f64, 2};
        communicator.all_reduce_sum(sum);
        communicator.all_reduce_sum(f64);
        communicator.all_gather(all);
        communicator.broadcast(first);
        communicator.check();
        check_equal("sum", memory.read(sum), {6, 60, -3});
        check_equal("sum in f64", memory.read(f64), {6, 0x1p-50 * 6});
        check_equal("all", memory.read(all), {1, -1, 2, -2, 3, -3});
        check_equal("rank 0's", memory.read(first), {1});
    });
}

TEST_CASE("a_rank_that_dies_ends_the_others_wait_where_nccl_notices_it") {
    on_processes(2, [](Ranks& ranks) { check_that_the_other_is_missed(ranks, {.sees_lost_ranks = true}); });
}

TEST_CASE("a_rank_that_dies_ends_the_others_wait_where_nccl_notices_nothing") {
    on_processes(2, [](Ranks& ranks) { check_that_the_other_is_missed(ranks, {.sees_lost_ranks = false}); });
}

TEST_CASE("a_rank_that_fails_alone_leaves_without_waiting_for_the_others") {
    on_processes(2, [](Ranks& ranks) {
        const auto go_on = [&] {
            train_together(ranks, CudaPrecision::f32, short_job(), {.before = [&](int64_t iteration) {
                               if (iteration == kPlanned && ranks.rank() == 1) throw std::runtime_error("the disk is full");
                           }});
        };
        if (ranks.rank() == 0) {
            CHECK_THROWS_AS(go_on(), RankLost);
            return;
        }
        CHECK_THROWS_WITH(go_on(), "the disk is full");
        die_as_planned();  // what the program does then
    });
}

TEST_CASE("a_device_can_go_while_it_waits_for_a_rank_that_is_dead") {
    on_processes(2, [](Ranks& ranks) {
        cuda_on_host::reset({.sees_lost_ranks = false});
        std::unique_ptr<Buffer> buffer;  // outlives the device: to free it would be a wait
        const double seconds = seconds_of([&] {
            const auto device = make_cuda_device({}, loop_plans(CudaPrecision::f32));
            device->join(ranks);
            buffer = device->allocate(4096);
            if (ranks.rank() == 0) device->communicator().all_reduce_sum({buffer->data(), DType::f32, 1024});
            ranks.barrier();
            if (ranks.rank() == 1) die_as_planned();
        });
        CHECK(seconds < kPatience);
        CHECK(cuda_on_host::last_report().empty());
        CHECK(cuda_on_host::misuses().empty());
    });
}

TEST_CASE("a_device_can_go_before_anyone_has_noticed_that_the_other_rank_is_dead") {
    on_processes(2, [](Ranks& ranks) {
        const RankDevice device(ranks, CudaPrecision::f32, {.sees_lost_ranks = false});
        ranks.barrier();
        if (ranks.rank() == 1) die_as_planned();
        while (!ranks.lost()) usleep(100);
    });
}

}  // namespace jem
