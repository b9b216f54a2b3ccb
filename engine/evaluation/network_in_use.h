// A trained network with the memory that it runs in: what each metric makes for itself, uses, and gives back.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>

#include "engine/memory/memory.h"
#include "engine/network/parameters.h"
#include "engine/network/predictor.h"

namespace jem {

// Which network it is, and how its weights come into it.
struct TrainedNetwork {
    Device& device;
    ConvAlgorithm conv_algorithm = ConvAlgorithm::automatic;
    Head energy_head = Head::classes;
    Predictor::ImageSize size;
    int64_t classes = 0;
    std::function<std::unique_ptr<Network>()> make;
    std::function<void(Parameters&, Network&)> load;  // weights and running statistics; leaves the network prepared

    // For so many images, in batches as equal as can be.
    int64_t best_batch(int64_t most, int64_t images) const {
        const int64_t best = make()->best_batch(device, most), batches = std::max<int64_t>(1, (images + best - 1) / best);
        return std::max<int64_t>(1, (images + batches - 1) / batches);
    }
};

// Use: register passes, chains and memory with network() and memory(); then ready(); then run them with passes().
class NetworkInUse {
public:
    explicit NetworkInUse(const TrainedNetwork& trained);

    Device& device() { return trained_.device; }
    Network& network() { return *network_; }
    Memory& memory() { return memory_; }
    // Builds the network, plans memory by what `queue` runs, takes it and loads the weights.
    void ready(const std::function<void()>& queue);
    NetworkMemory passes();
    Parameters& parameters() { return *parameters_; }
    IterationState* state() { return reinterpret_cast<IterationState*>(memory_.at(state_)); }

private:
    const TrainedNetwork trained_;
    std::unique_ptr<Network> network_;
    Memory memory_;
    std::unique_ptr<Parameters> parameters_;
    Slot state_;
};

}  // namespace jem
