// What the emulation's NCCL refuses; only where NCCL's header is.
#include <doctest/doctest.h>

#include <nccl.h>
#include <string>
#include <vector>

#include "tests/emulation/device.h"
#include "tests/emulation/nccl_on_host.h"
#include "tests/emulation/processes.h"

namespace jem {
namespace {

// A rank's communicator and memory, without the project's own code.
struct Rank {
    ncclComm_t communicator = nullptr;
    cudaStream_t stream = nullptr, other = nullptr;
    float* memory = nullptr;
    static constexpr size_t kCount = 64;

    explicit Rank(Ranks& ranks) {
        cuda_on_host::reset({});
        REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
        REQUIRE(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking) == cudaSuccess);
        REQUIRE(cudaMalloc(reinterpret_cast<void**>(&memory), 2 * kCount * sizeof(float)) == cudaSuccess);
        REQUIRE(cudaMemsetAsync(memory, 0, 2 * kCount * sizeof(float), stream) == cudaSuccess);
        REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
        ncclUniqueId id = {};
        if (ranks.rank() == 0) REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
        ranks.broadcast(&id, sizeof id);
        REQUIRE(ncclCommInitRank(&communicator, ranks.size(), id, ranks.rank()) == ncclSuccess);
    }
    Rank(const Rank&) = delete;  // the machine is one
    Rank& operator=(const Rank&) = delete;
    ~Rank() { cuda_on_host::reset({}); }

    ncclResult_t sum(size_t count = kCount) { return ncclAllReduce(memory, memory, count, ncclFloat32, ncclSum, communicator, stream); }
};

void check_mention(const std::string& text, const std::string& part) {
    CHECK_MESSAGE(text.find(part) != std::string::npos, "\"", text, "\" does not mention \"", part, "\"");
}

}  // namespace

TEST_CASE("ranks_that_call_different_collectives_fail_with_both_calls") {
    on_processes(2, [](Ranks& ranks) {
        Rank rank(ranks);
        const size_t mine = ranks.rank() == 0 ? 5 : 6;
        CHECK(rank.sum() == ncclSuccess);
        CHECK(rank.sum(mine) == ncclSuccess);
        CHECK(cudaStreamSynchronize(rank.stream) != cudaSuccess);
        check_mention(cuda_on_host::last_report(), "rank 0 calls ncclAllReduce of 5");
        check_mention(cuda_on_host::last_report(), "rank 1 calls ncclAllReduce of 6");
    });
}

TEST_CASE("calls_on_a_communicator_that_is_gone_and_operands_that_overlap_are_refused") {
    on_processes(2, [](Ranks& ranks) {
        Rank rank(ranks);
        CHECK(ncclAllGather(rank.memory + 1, rank.memory, Rank::kCount, ncclFloat32, rank.communicator, rank.stream) == ncclInvalidUsage);
        check_mention(cuda_on_host::misuses(), "overlap");
        CHECK(ncclCommAbort(rank.communicator) == ncclSuccess);
        CHECK(rank.sum() == ncclInvalidUsage);
        CHECK(ncclCommDestroy(rank.communicator) == ncclInvalidUsage);
        check_mention(cuda_on_host::misuses(), "ncclCommDestroy on a communicator that was aborted");
    });
}

TEST_CASE("a_communicator_waits_for_its_graphs_before_it_ends") {
    on_processes(2, [](Ranks& ranks) {
        Rank rank(ranks);
        cudaGraph_t graph = nullptr;
        REQUIRE(cudaStreamBeginCapture(rank.stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
        CHECK(rank.sum() == ncclSuccess);
        REQUIRE(cudaStreamEndCapture(rank.stream, &graph) == cudaSuccess);
        CHECK(ncclCommDestroy(rank.communicator) == ncclInvalidUsage);
        check_mention(cuda_on_host::misuses(), "waits for ever: graphs");
        REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
        CHECK(ncclCommDestroy(rank.communicator) == ncclSuccess);
    });
}

TEST_CASE("an_end_that_not_all_ranks_make_is_told") {
    on_processes(2, [](Ranks& ranks) {
        Rank rank(ranks);
        if (ranks.rank() == 1) {
            ranks.barrier();
            die_as_planned();
        }
        ranks.barrier();
        CHECK(ncclCommDestroy(rank.communicator) == ncclInvalidUsage);
        check_mention(cuda_on_host::misuses(), "rank 1 is gone");
    });
}

TEST_CASE("an_error_that_nccl_reports_ends_the_wait_though_every_rank_lives") {
    on_processes(2, [](Ranks& ranks) {
        EmulatedDevice device(CudaPrecision::f32);
        device->join(ranks);
        const auto buffer = device->allocate(4096);
        ranks.barrier();
        cuda_on_host::cut_connections();
        device->communicator().all_reduce_sum({buffer->data(), DType::f32, 1024});
        CHECK_NOTHROW(device->synchronize());
        CHECK_THROWS_AS(device->communicator().check(), RankLost);
        CHECK_THROWS_AS(device->communicator().broadcast({buffer->data(), DType::f32, 1024}), RankLost);
        CHECK(!ranks.lost());
        CHECK(cuda_on_host::misuses().empty());
        ranks.barrier();
    });
}

TEST_CASE("a_collective_on_another_stream_than_its_operands_is_a_race") {
    on_processes(
        2,
        [](Ranks& ranks) {
            Rank rank(ranks);
            const uint64_t before = cuda_on_host::races();
            // What is cleared on one stream is summed on another, without an event between.
            REQUIRE(cudaMemsetAsync(rank.memory, 0, Rank::kCount * sizeof(float), rank.other) == cudaSuccess);
            CHECK(rank.sum() == ncclSuccess);
            CHECK(cudaStreamSynchronize(rank.stream) == cudaSuccess);
            CHECK(cudaStreamSynchronize(rank.other) == cudaSuccess);
            if (cuda_on_host::checks_races()) CHECK(cuda_on_host::races() > before);
            CHECK(ncclCommDestroy(rank.communicator) == ncclSuccess);
        },
        Races::planted);
}

}  // namespace jem
