#include "engine/sampling/replay_buffer.h"

#include <algorithm>
#include <vector>

namespace jem {

ReplayBuffer::ReplayBuffer(Device& device, Memory& memory, const Options& options)
    : device_(device), memory_(memory), options_(options), job_chains_(options.chains * device.communicator().size()) {
    const size_t real = size_of(device.real_type());
    const auto chains = static_cast<size_t>(options.chains), job_chains = static_cast<size_t>(job_chains_);
    images_ = memory.keep("replay buffer", "replay buffer", static_cast<size_t>(options.size * options.pixels) * real);
    index_ = memory.keep("samples", "buffer index", job_chains * sizeof(int32_t));
    fresh_ = memory.keep("samples", "fresh chains", job_chains * sizeof(int32_t));
    if (job_chains > chains) all_chains_ = memory.transient("all ranks' chains", job_chains * static_cast<size_t>(options.pixels) * real);
    if (options.form != StartForm::uniform)
        weights_ = memory.transient("start weights", chains * static_cast<size_t>(options.largest_class) * real);
}

Array ReplayBuffer::images() { return {memory_.at(images_), device_.real_type(), options_.size * options_.pixels}; }
Array ReplayBuffer::index() { return {memory_.at(index_), DType::i32, job_chains_}; }
Array ReplayBuffer::fresh() { return {memory_.at(fresh_), DType::i32, job_chains_}; }

Array ReplayBuffer::weights(int64_t chains) {
    if (!weights_.valid()) return {};
    return {memory_.at(weights_), device_.real_type(), chains * options_.largest_class};
}

void ReplayBuffer::draw(Array chains, const ResidentImages& images, const IterationState* state) {
    const Communicator& ranks = device_.communicator();
    device_.ops().draw_chains(index(), fresh(), state, options_.size, images.classes, options_.reinit_freq, options_.seed);
    device_.ops().start_images(chains, this->images(), ranks.own(index()), ranks.own(fresh()), weights(options_.chains), images, state,
                               {.first_chain = ranks.rank() * options_.chains,
                                .weights = RandomStream::init_weights,
                                .pixels = RandomStream::init_pixels,
                                .seed = options_.seed});
}

void ReplayBuffer::store(Array chains, const IterationState* state) {
    Communicator& ranks = device_.communicator();
    if (all_chains_.valid()) {
        const auto all = [&] { return Array{memory_.at(all_chains_), device_.real_type(), job_chains_ * options_.pixels}; };
        device_.copy(ranks.own(all()).data, chains.data, chains.bytes());
        ranks.all_gather(all());
        chains = all();
    }
    device_.ops().store_chains(images(), chains, index(), state);
}

void ReplayBuffer::start(Array x, Array classes, int64_t first_chain, const ResidentImages& images, const IterationState* state) {
    device_.ops().start_images(x, Array{nullptr, device_.real_type(), 0}, classes, classes, weights(classes.count), images, state,
                               {.first_chain = first_chain,
                                .weights = RandomStream::buffer_fill_weights,
                                .pixels = RandomStream::buffer_fill_pixels,
                                .seed = options_.seed});
}

void ReplayBuffer::fill(const ResidentImages& images, const IterationState* state, const std::function<void(int64_t)>& progress) {
    const int64_t each = options_.size / images.classes, more = options_.size % images.classes;
    std::vector<int32_t> classes;
    for (int64_t c = 0; c < images.classes; ++c)
        classes.insert(classes.end(), static_cast<size_t>(each + (c < more ? 1 : 0)), static_cast<int32_t>(c));
    for (int64_t first = 0; first < options_.size; first += options_.chains) {
        const int64_t n = std::min(options_.chains, options_.size - first);
        const Array labels = fresh().slice(0, n);
        device_.upload(labels.data, classes.data() + first, labels.bytes());
        start(this->images().slice(first * options_.pixels, n * options_.pixels), labels, first, images, state);
        device_.synchronize();
        progress(first + n);
    }
}

}  // namespace jem
