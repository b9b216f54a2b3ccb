#include "engine/ranks/ranks.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "engine/ranks/mpi/mpi_ranks.h"
#include "engine/ranks/tcp/tcp_ranks.h"

namespace jem {
namespace {

class LoneRank final : public Ranks {
public:
    LoneRank() : Ranks(0, 1) {}
    void all_gather(void*, size_t) override {}
    void all_to_all(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
    void broadcast(void*, size_t) override {}
    [[noreturn]] void abort(int exit_code) noexcept override { std::_Exit(exit_code); }
};

const char* text_of(const char* name) {
    const char* text = std::getenv(name);
    return text != nullptr && *text != 0 ? text : nullptr;
}

int number_of(const char* name, int low, int high) {
    const char* text = text_of(name);
    int value = 0;
    const char* end = text == nullptr ? nullptr : text + std::strlen(text);
    const auto [stopped, error] = std::from_chars(text, end, value);
    if (text == nullptr || error != std::errc() || stopped != end || value < low || value > high)
        throw InputError(std::string("The environment's ") + name + " is \"" + (text == nullptr ? "" : text) + "\" (a number from " +
                         std::to_string(low) + " to " + std::to_string(high) + " is expected). Start with mpirun or torchrun, or unset " +
                         name + ".");
    return value;
}

}  // namespace

bool Ranks::any(bool mine) {
    if (size_ == 1) return mine;
    std::vector<uint8_t> all(static_cast<size_t>(size_));
    all[static_cast<size_t>(rank_)] = mine ? 1 : 0;
    all_gather(all.data(), 1);
    return std::find(all.begin(), all.end(), 1) != all.end();
}

Ranks& lone_rank() {
    static LoneRank alone;
    return alone;
}

Launch find_launch() {
    constexpr int kMany = 1 << 20;
    Launch launch;
    // Open MPI's own names; MPICH, Intel MPI and others by PMI.
    for (const auto& [rank, size] : {std::pair{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}, std::pair{"PMI_RANK", "PMI_SIZE"}}) {
        if (text_of(size) == nullptr || number_of(size, 1, kMany) == 1) continue;
        launch.by = Launch::By::mpirun;
        launch.size = number_of(size, 1, kMany);
        launch.rank = number_of(rank, 0, launch.size - 1);
        return launch;
    }
    // WORLD_SIZE alone may be anybody's.
    if (text_of("WORLD_SIZE") == nullptr || text_of("RANK") == nullptr || number_of("WORLD_SIZE", 1, kMany) == 1) return launch;
    launch.by = Launch::By::torchrun;
    launch.size = number_of("WORLD_SIZE", 1, kMany);
    launch.rank = number_of("RANK", 0, launch.size - 1);
    launch.port = number_of("MASTER_PORT", 1, 65535);
    if (text_of("MASTER_ADDR") == nullptr)
        throw InputError("WORLD_SIZE and RANK are set, MASTER_ADDR is not. Start with torchrun, or unset WORLD_SIZE.");
    launch.master = text_of("MASTER_ADDR");
    return launch;
}

std::unique_ptr<Ranks> join_ranks(const Launch& launch, const std::function<void(const std::string&)>& tell) {
    switch (launch.by) {
        case Launch::By::nobody:
            break;
        case Launch::By::mpirun:
            return make_mpi_ranks();
        case Launch::By::torchrun:
            return make_tcp_ranks({.rank = launch.rank,
                                   .size = launch.size,
                                   .address = launch.master,
                                   .port = launch.port,
                                   .job = text_of("TORCHELASTIC_RUN_ID") != nullptr ? text_of("TORCHELASTIC_RUN_ID") : "",
                                   .tell = tell});
    }
    return std::make_unique<LoneRank>();
}

LocalPlace local_place(Ranks& ranks) {
    using Name = std::array<char, 256>;
    std::vector<Name> names(static_cast<size_t>(ranks.size()));
    gethostname(names[static_cast<size_t>(ranks.rank())].data(), sizeof(Name) - 1);
    ranks.all_gather(names.data(), sizeof(Name));
    LocalPlace place{.rank = 0, .size = 0};
    for (int r = 0; r < ranks.size(); ++r) {
        if (names[static_cast<size_t>(r)] != names[static_cast<size_t>(ranks.rank())]) continue;
        if (r < ranks.rank()) ++place.rank;
        ++place.size;
    }
    return place;
}

int gpu_of_rank(int local_rank) {
    const char* visible = text_of("CUDA_VISIBLE_DEVICES");
    if (visible != nullptr && std::strchr(visible, ',') == nullptr) return 0;
    return text_of("LOCAL_RANK") != nullptr ? number_of("LOCAL_RANK", 0, 1 << 20) : local_rank;
}

void refuse_mixed_devices(Ranks& ranks, const std::string& kind) {
    using Name = std::array<char, 32>;
    std::vector<Name> names(static_cast<size_t>(ranks.size()));
    kind.copy(names[static_cast<size_t>(ranks.rank())].data(), sizeof(Name) - 1);
    ranks.all_gather(names.data(), sizeof(Name));
    together(ranks, [&] {
        for (size_t r = 1; r < names.size(); ++r)
            if (names[r] != names[0])
                throw InputError(std::string("The ranks have different devices (rank 0: ") + names[0].data() + ", rank " +
                                 std::to_string(r) + ": " + names[r].data() + "). Give each a GPU, or all --device cpu.");
    });
}

}  // namespace jem
