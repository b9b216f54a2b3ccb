// SGLD on the input: K times forward, backward to the images, one step up the LSE (SADA-JEM, Eq. 3; Algorithm 1, line 5).
// Step k + 1 overwrites what step k needed; no weight gradient exists.
#pragma once

#include <string>

#include "engine/network/network.h"

namespace jem {

class Sampler {
public:
    struct Options {
        std::string name;
        int64_t chains = 0, height = 0, width = 0, channels = 0;  // chains: this rank's
        SgldSettings sgld;
        NormMode norm = NormMode::batch_update;
        int64_t given_noise_steps = 0;  // > 0: noise() is read in place of the generator's
    };

    Sampler(Device& device, Network& network, Memory& memory, const Options& options);

    Array samples();         // R [chains, H*W*C]
    Tensor sample_images();  // the same as [N, H, W, C]
    Array noise();           // R [steps, chains, H*W*C]

    // Queues one step. memory.weights must be what the network was prepared with.
    void step(const NetworkMemory& memory, IterationState* state);

private:
    int64_t sample_count() const;

    Device& device_;
    Network& network_;
    Memory& memory_;
    Options options_;
    int pass_;
    Slot samples_, gradient_, lse_, noise_;
};

}  // namespace jem
