// What processes of a job tell each other: sums, gathers, agreement on failures; who they are; the sockets of torchrun's ranks.
#include "engine/ranks/ranks.h"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "engine/ranks/tcp/tcp_ranks.h"
#include "tests/check.h"
#include "tests/engine/ranks/collectives.h"
#include "tests/on_device.h"
#include "tests/thread_ranks.h"

namespace jem {
namespace {

Values values_of_rank(int rank, int64_t count) { return TestData(100 + static_cast<uint64_t>(rank)).normals(count); }

// Both precisions; a GPU has its own collectives.
void on_reference(const std::function<void(Device&)>& test) {
    for (const DType type : {DType::f32, DType::f64}) test(*make_reference_device(type));
}

// Sets variables for one test, and puts back what was there.
class Environment {
public:
    explicit Environment(const std::map<std::string, std::string>& values) {
        for (const char* name : {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "RANK", "WORLD_SIZE",
                                 "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"}) {
            if (const char* old = std::getenv(name)) before_[name] = old;
            unsetenv(name);
        }
        for (const auto& [name, value] : values) setenv(name.c_str(), value.c_str(), 1);
        now_ = values;
    }
    Environment(const Environment&) = delete;  // restores once
    Environment& operator=(const Environment&) = delete;
    ~Environment() {
        for (const auto& [name, value] : now_) unsetenv(name.c_str());
        for (const auto& [name, value] : before_) setenv(name.c_str(), value.c_str(), 1);
    }

private:
    std::map<std::string, std::string> before_, now_;
};

// A port that was free a moment ago.
int free_port() { return 20000 + static_cast<int>(getpid()) % 20000; }

TcpPlace place(int rank, int size, int port) {
    return {.rank = rank, .size = size, .address = "127.0.0.1", .port = port, .job = "test " + std::to_string(getpid()), .timeout_s = 20};
}

}  // namespace

TEST_CASE("a sum over ranks adds in the ranks' order and ends in the same bits everywhere") {
    // One value, fewer values than ranks, and more than a piece of 4 MiB, not a multiple of anything.
    for (const int size : {2, 3, 4})
        for (const int64_t count : {int64_t{1}, int64_t{2}, int64_t{1000}, int64_t{1200007}}) {
            if (count > 10000 && size != 3) continue;
            std::vector<Values> results(static_cast<size_t>(size));
            on_ranks(size, [&](Ranks& ranks) {
                auto device = make_reference_device(DType::f32);
                device->join(ranks);
                OnDevice memory(*device);
                const Array x = memory.real(values_of_rank(ranks.rank(), count));
                device->communicator().all_reduce_sum(x);
                results[static_cast<size_t>(ranks.rank())] = memory.read(x);
            });
            Values want(static_cast<size_t>(count));
            for (int r = 0; r < size; ++r) {
                const Values v = values_of_rank(r, count);
                for (size_t i = 0; i < v.size(); ++i) want[i] += v[i];
            }
            for (double& v : want) v = static_cast<float>(v);
            for (const Values& got : results) check_equal("sum of " + std::to_string(count), got, want);
        }
}

TEST_CASE("f64 sums over ranks keep their precision") {
    on_ranks(2, [](Ranks& ranks) {
        auto device = make_reference_device(DType::f64);
        device->join(ranks);
        OnDevice memory(*device);
        const Array x = memory.real({ranks.rank() == 0 ? 1.0 : 0x1p-50});
        device->communicator().all_reduce_sum(x);
        check_equal("sum", memory.read(x), {1.0 + 0x1p-50});
    });
}

TEST_CASE("collectives are recorded and replayed, and only counted in a dry run") {
    on_ranks(2, [](Ranks& ranks) {
        auto device = make_reference_device(DType::f64);
        device->join(ranks);
        check_recorded_collectives(*device);
    });
}

TEST_CASE("a process alone queues no collective") {
    on_reference([](Device& device) {
        OnDevice memory(device);
        const Array x = memory.real({1.0, 2.0});
        const int64_t before = device.launches();
        device.communicator().all_reduce_sum(x);
        device.communicator().all_gather(x);
        device.communicator().broadcast(x);
        device.join(lone_rank());
        device.communicator().all_reduce_sum(x);
        CHECK(device.launches() == before);
        CHECK(device.communicator().size() == 1);
        check_equal("untouched", memory.read(x), {1, 2});
    });
}

TEST_CASE("a failure on one rank ends all, and that rank alone has the words") {
    std::vector<int> codes(3, -1);
    on_ranks(3, [&](Ranks& ranks) {
        together(ranks, [] {});
        CHECK(!ranks.parting());
        int& code = codes[static_cast<size_t>(ranks.rank())];
        try {
            together(ranks, [&] {
                if (ranks.rank() == 1) throw InputError("no such file");
                if (ranks.rank() == 2) throw std::runtime_error("something else");
            });
        } catch (const InputError& e) {
            CHECK(std::string(e.what()) == "no such file");
            code = 100;
        } catch (const OtherRankFailed& e) {
            code = e.exit_code();
        }
        CHECK(ranks.parting());
    });
    CHECK(codes == std::vector<int>{2, 100, 2});
}

TEST_CASE("ranks with devices of different kinds all refuse, and those with the same go on") {
    std::vector<int> codes(3, -1);
    on_ranks(3, [&](Ranks& ranks) {
        CHECK_NOTHROW(refuse_mixed_devices(ranks, "cpu"));
        int& code = codes[static_cast<size_t>(ranks.rank())];
        try {
            refuse_mixed_devices(ranks, ranks.rank() == 1 ? "cuda" : "cpu");
        } catch (const InputError& e) {
            CHECK(std::string(e.what()).find("rank 0: cpu, rank 1: cuda") != std::string::npos);
            code = 100;
        } catch (const OtherRankFailed& e) {
            code = e.exit_code();
        }
    });
    CHECK(codes == std::vector<int>{100, 2, 2});
}

TEST_CASE("a rank's GPU is the one it is shown, or the launcher's choice, or its place on the machine") {
    const auto gpu = [](const std::map<std::string, std::string>& variables) {
        const Environment environment(variables);
        return gpu_of_rank(3);
    };
    CHECK(gpu({}) == 3);
    CHECK(gpu({{"LOCAL_RANK", "1"}}) == 1);
    CHECK(gpu({{"CUDA_VISIBLE_DEVICES", "0,1,2,3"}}) == 3);
    CHECK(gpu({{"CUDA_VISIBLE_DEVICES", "4,5"}, {"LOCAL_RANK", "1"}}) == 1);
    CHECK(gpu({{"CUDA_VISIBLE_DEVICES", "GPU-7a9c"}, {"LOCAL_RANK", "1"}}) == 0);
    CHECK_THROWS_AS(gpu({{"LOCAL_RANK", "first"}}), InputError);
}

TEST_CASE("any is true where it is true on one rank") {
    on_ranks(3, [](Ranks& ranks) {
        CHECK(ranks.any(ranks.rank() == 2));
        CHECK(!ranks.any(false));
    });
    CHECK(lone_rank().any(true));
    CHECK(!lone_rank().any(false));
}

TEST_CASE("who started a process is read from its environment") {
    {
        const Environment none({});
        CHECK(find_launch().by == Launch::By::nobody);
        CHECK(find_launch().size == 1);
    }
    {
        const Environment mpirun({{"OMPI_COMM_WORLD_RANK", "3"}, {"OMPI_COMM_WORLD_SIZE", "4"}});
        const Launch launch = find_launch();
        CHECK(launch.by == Launch::By::mpirun);
        CHECK(launch.rank == 3);
        CHECK(launch.size == 4);
    }
    {
        const Environment torchrun({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "node1"}, {"MASTER_PORT", "29500"}});
        const Launch launch = find_launch();
        CHECK(launch.by == Launch::By::torchrun);
        CHECK(launch.master == "node1");
        CHECK(launch.port == 29500);
    }
    {
        const Environment one({{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}, {"RANK", "0"}, {"WORLD_SIZE", "1"}});
        CHECK(find_launch().by == Launch::By::nobody);
    }
    {
        const Environment wrong({{"OMPI_COMM_WORLD_RANK", "4"}, {"OMPI_COMM_WORLD_SIZE", "4"}});
        CHECK_THROWS_AS(find_launch(), InputError);
    }
    {
        const Environment wrong({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "node1"}});
        CHECK_THROWS_AS(find_launch(), InputError);
    }
}

TEST_CASE("ranks of torchrun find each other by sockets and exchange bytes") {
    constexpr int kSize = 3;
    const int port = free_port();
    std::vector<std::thread> threads;
    for (int r = 0; r < kSize; ++r)
        threads.emplace_back([&, r] {
            const auto ranks = make_tcp_ranks(place(r, kSize, port));
            std::vector<int> all(kSize);
            all[static_cast<size_t>(r)] = 10 + r;
            ranks->all_gather(all.data(), sizeof(int));
            CHECK(all == std::vector<int>{10, 11, 12});
            const std::vector<int> from = {10 * r, 10 * r + 1, 10 * r + 2};
            std::vector<int> to(kSize);
            ranks->all_to_all(to.data(), from.data(), sizeof(int));
            CHECK(to == std::vector<int>{r, 10 + r, 20 + r});
            int64_t value = r == 0 ? 77 : 0;
            ranks->broadcast(&value, sizeof value);
            CHECK(value == 77);
            CHECK(local_place(*ranks).rank == r);
            CHECK(local_place(*ranks).size == kSize);
            CHECK(!ranks->lost());
            ranks->barrier();
        });
    for (std::thread& t : threads) t.join();
}

TEST_CASE("a rank of torchrun that dies is missed, one that leaves in order is not") {
    for (const bool dies : {true, false}) {
        const TcpPlace first = place(0, 2, free_port() + 100);
        TcpPlace second = first;  // before the fork: it names the parent's process
        second.rank = 1;
        const pid_t child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            try {
                auto ranks = make_tcp_ranks(second);
                ranks->barrier();
                if (dies) std::_Exit(0);       // without a word
            } catch (const std::exception&) {  // the parent will miss it
            }
            std::_Exit(0);
        }
        const auto ranks = make_tcp_ranks(first);
        ranks->barrier();
        waitpid(child, nullptr, 0);
        CHECK(ranks->lost() == dies);
        if (dies) CHECK_THROWS_AS(ranks->barrier(), RankLost);
    }
}

TEST_CASE("ranks that do not appear are waited for no longer than said") {
    TcpPlace lonely = place(0, 2, free_port() + 200);
    lonely.timeout_s = 1;
    CHECK_THROWS_AS(make_tcp_ranks(lonely), RankLost);
    lonely.rank = 1;
    CHECK_THROWS_AS(make_tcp_ranks(lonely), RankLost);
}

}  // namespace jem
