#include "engine/sampling/replay_buffer.h"

#include <algorithm>
#include <vector>

namespace jem {
namespace {

// Of a block of the fill's product: with them its three matrices take 10 MB for CIFAR-10, and what is read and written between the
// multiplications counts for little.
constexpr int64_t kMostImages = 256, kMostRows = 512;
constexpr int64_t kWidth = 16;  // sizes that libraries multiply well

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

ReplayBuffer::ReplayBuffer(Device& device, Memory& memory, const Options& options)
    : device_(device), memory_(memory), options_(options), job_chains_(options.chains * device.communicator().size()) {
    const size_t real = size_of(device.real_type());
    const auto chains = static_cast<size_t>(options.chains), job_chains = static_cast<size_t>(job_chains_);
    images_ = memory.keep("replay buffer", "replay buffer", static_cast<size_t>(options.size * options.pixels) * real);
    births_ = memory.keep("replay buffer", "births", static_cast<size_t>(options.size) * sizeof(int32_t));
    index_ = memory.keep("samples", "buffer index", job_chains * sizeof(int32_t));
    fresh_ = memory.keep("samples", "fresh chains", job_chains * sizeof(int32_t));
    if (job_chains > chains) all_chains_ = memory.transient("all ranks' chains", job_chains * static_cast<size_t>(options.pixels) * real);
    if (options.form != StartForm::uniform)
        weights_ = memory.transient("start weights", chains * static_cast<size_t>(options.largest_class) * real);
    if (options.form == StartForm::uniform || options.size == 0) return;
    const int64_t starts = (options.size + options.classes - 1) / options.classes, pieces = (starts + kMostRows - 2) / (kMostRows - 1);
    block_ = std::min(kMostImages, rounded_up(options.largest_class, 4));
    rows_ = rounded_up((starts + pieces - 1) / pieces + 1, kWidth);
    columns_ = rounded_up(options.pixels + 1, kWidth);
    product_ = device.plan_linear(columns_, rows_, {block_});
    memory.need_workspace(product_->workspace_bytes());
    z_ = memory.transient("start factors", static_cast<size_t>(block_ * rows_) * real);
    x_ = memory.transient("start pixels", static_cast<size_t>(block_ * columns_) * real);
    sums_ = memory.transient("start product", static_cast<size_t>(rows_ * columns_) * real);
}

Array ReplayBuffer::images() { return {memory_.at(images_), device_.real_type(), options_.size * options_.pixels}; }
Array ReplayBuffer::births() { return {memory_.at(births_), DType::i32, options_.size}; }
Array ReplayBuffer::index() { return {memory_.at(index_), DType::i32, job_chains_}; }
Array ReplayBuffer::fresh() { return {memory_.at(fresh_), DType::i32, job_chains_}; }

Array ReplayBuffer::weights(int64_t chains) {
    if (!weights_.valid()) return {};
    return {memory_.at(weights_), device_.real_type(), chains * options_.largest_class};
}

void ReplayBuffer::all_born_in(int64_t iteration) {
    const std::vector<int32_t> all(static_cast<size_t>(options_.size), static_cast<int32_t>(iteration));
    device_.upload(births().data, all.data(), births().bytes());
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
    device_.ops().store_births(births(), index(), fresh(), state);
}

ChainStart ReplayBuffer::fill_draws(int64_t first_chain) const {
    return {.first_chain = first_chain,
            .weights = RandomStream::buffer_fill_weights,
            .pixels = RandomStream::buffer_fill_pixels,
            .seed = options_.seed};
}

void ReplayBuffer::start(Array x, Array classes, int64_t first_chain, const ResidentImages& images, const IterationState* state) {
    device_.ops().start_images(x, Array{nullptr, device_.real_type(), 0}, classes, classes, weights(classes.count), images, state,
                               fill_draws(first_chain));
}

Tensor ReplayBuffer::part_of_product(Slot slot, int64_t rows, int64_t columns) {
    return {memory_.at(slot), device_.real_type(), rows, columns, 1, 1, columns};
}

void ReplayBuffer::fill_of_class(Array x, const ResidentImages& images, const IterationState* state, const ClassStarts& starts) {
    Ops& ops = device_.ops();
    const auto product = [&] { return part_of_product(sums_, rows_, columns_); };
    const auto sums = [&] { return Array{memory_.at(sums_), device_.real_type(), rows_ * columns_}; };
    ops.fill_zero(sums());
    for (int64_t first = 0; first < starts.size; first += block_) {
        ops.start_factors(part_of_product(z_, block_, rows_), part_of_product(x_, block_, columns_), images, state, starts, first);
        product_->backward_weights(sums(), part_of_product(x_, block_, columns_), part_of_product(z_, block_, rows_), memory_.workspace());
    }
    ops.starts_of_product(x, product(), state, starts);
}

void ReplayBuffer::plan_fill(const ResidentImages& images, const IterationState* state) {
    if (!product_) return;
    fill_of_class(this->images().slice(0, options_.pixels), images, state, {.begin = 0, .size = 1, .starts = 1, .draws = fill_draws(0)});
}

void ReplayBuffer::fill(const ResidentImages& images, const IterationState* state, const std::function<void(int64_t)>& progress,
                        int64_t now) {
    all_born_in(now);
    if (!product_) {
        const std::vector<int32_t> classes(static_cast<size_t>(options_.chains));  // of any: all that counts is that none continues
        device_.upload(fresh().data, classes.data(), fresh().slice(0, options_.chains).bytes());
        for (int64_t first = 0; first < options_.size; first += options_.chains) {
            const int64_t n = std::min(options_.chains, options_.size - first);
            start(this->images().slice(first * options_.pixels, n * options_.pixels), fresh().slice(0, n), first, images, state);
            device_.synchronize();
            progress(first + n);
        }
        return;
    }
    std::vector<int32_t> begin(static_cast<size_t>(images.classes + 1));
    device_.download(begin.data(), images.class_begin.data, images.class_begin.bytes());
    int64_t done = 0;
    for (int64_t c = 0; c < images.classes; ++c) {
        const int64_t from = begin[static_cast<size_t>(c)], size = begin[static_cast<size_t>(c) + 1] - from;
        const int64_t end = done + options_.size / images.classes + (c < options_.size % images.classes ? 1 : 0);
        while (done < end) {
            const int64_t n = std::min(rows_ - 1, end - done);
            fill_of_class(this->images().slice(done * options_.pixels, n * options_.pixels), images, state,
                          {.begin = from, .size = size, .starts = n, .draws = fill_draws(done)});
            device_.synchronize();
            done += n;
            progress(done);
        }
    }
}

}  // namespace jem
