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

ReplayBuffer::ReplayBuffer(Device& device, Memory& memory, const Options& options) : device_(device), memory_(memory), options_(options) {
    const size_t real = size_of(device.real_type());
    images_ = memory.keep("replay buffer", "replay buffer", static_cast<size_t>(options.size * options.pixels) * real);
    births_ = memory.keep("replay buffer", "births", static_cast<size_t>(options.size) * sizeof(int32_t));
    add_chains(options.chains, options.by_class);
    if (!is_of_gaussians(options.form) || options.size == 0) return;
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

int ReplayBuffer::add_chains(int64_t chains, bool by_class) {
    const size_t real = size_of(device_.real_type());
    const int64_t job_chains = chains * device_.communicator().size();
    const std::string of = kinds_.empty() ? "" : " " + std::to_string(kinds_.size() + 1);
    Kind k{.chains = chains,
           .job_chains = job_chains,
           .first = 0,
           .index = {},
           .fresh = {},
           .weights = {},
           .means = {},
           .labels = {},
           .places = {},
           .born = {},
           .all = {},
           .draws = {},
           .kept = {}};
    if (!kinds_.empty()) k.first = kinds_.back().first + kinds_.back().job_chains;
    k.index = memory_.keep("samples", "buffer index" + of, static_cast<size_t>(job_chains) * sizeof(int32_t));
    k.fresh = memory_.keep("samples", "fresh chains" + of, static_cast<size_t>(job_chains) * sizeof(int32_t));
    if (by_class) k.labels = memory_.keep("samples", "classes of chains" + of, static_cast<size_t>(job_chains) * sizeof(int32_t));
    if (options_.order == BufferOrder::fifo) {
        k.places = memory_.keep("samples", "places of chains" + of, static_cast<size_t>(job_chains) * sizeof(int32_t));
        k.born = memory_.keep("samples", "births of chains" + of, static_cast<size_t>(job_chains) * sizeof(int32_t));
    }
    if (job_chains > chains) k.all = memory_.transient("all ranks' chains" + of, static_cast<size_t>(job_chains * options_.pixels) * real);
    if (is_of_gaussians(options_.form)) {
        k.weights = memory_.transient("start weights" + of, static_cast<size_t>(chains * options_.largest_class) * real);
        k.means = memory_.transient("means of start weights" + of, static_cast<size_t>(chains) * sizeof(double));
    }
    if (options_.form == StartForm::images) {
        k.draws = memory_.keep("samples", "images for fresh chains" + of, static_cast<size_t>(chains) * sizeof(ImageDraw));
        k.kept = memory_.transient("chains that go on" + of, static_cast<size_t>(chains * options_.pixels) * real);
    }
    kinds_.push_back(k);
    return static_cast<int>(kinds_.size()) - 1;
}

Array ReplayBuffer::images() { return {memory_.at(images_), device_.real_type(), options_.size * options_.pixels}; }
Array ReplayBuffer::births() { return {memory_.at(births_), DType::i32, options_.size}; }
Array ReplayBuffer::index(int kind) {
    const Kind& k = kinds_[static_cast<size_t>(kind)];
    return {memory_.at(k.index), DType::i32, k.job_chains};
}
Array ReplayBuffer::fresh(int kind) {
    const Kind& k = kinds_[static_cast<size_t>(kind)];
    return {memory_.at(k.fresh), DType::i32, k.job_chains};
}
Array ReplayBuffer::labels(int kind) {
    const Kind& k = kinds_[static_cast<size_t>(kind)];
    if (!k.labels.valid()) return {};
    return device_.communicator().own(Array{memory_.at(k.labels), DType::i32, k.job_chains});
}

StartScratch ReplayBuffer::scratch(int kind, int64_t chains) {
    const Kind& k = kinds_[static_cast<size_t>(kind)];
    if (!k.weights.valid()) return {};
    return {.weights = {memory_.at(k.weights), device_.real_type(), chains * options_.largest_class},
            .means = {memory_.at(k.means), DType::f64, chains}};
}

void ReplayBuffer::all_born_in(int64_t iteration) {
    const std::vector<int32_t> all(static_cast<size_t>(options_.size), static_cast<int32_t>(iteration));
    device_.upload(births().data, all.data(), births().bytes());
}

void ReplayBuffer::draw(Array chains, const ResidentImages& images, const IterationState* state, int kind, Array labels) {
    Communicator& ranks = device_.communicator();
    const Kind& k = kinds_[static_cast<size_t>(kind)];
    ChainDraw how{.labels = {}, .classes = options_.num_classes, .first = k.first};
    if (k.labels.valid()) {
        how.labels = {memory_.at(k.labels), DType::i32, k.job_chains};
        if (labels.count > 0) {
            device_.copy(ranks.own(how.labels).data, labels.data, labels.bytes());
            ranks.all_gather(how.labels);
        } else {
            device_.ops().draw_labels(how.labels, state, options_.num_classes, options_.seed);
        }
    }
    device_.ops().draw_chains(index(kind), fresh(kind), state, options_.size, images.classes, options_.reinit_freq, options_.seed, how);
    queue_starts(chains, this->images(), ranks.own(index(kind)), ranks.own(fresh(kind)), kind, images, state,
                 {.first_chain = k.first + ranks.rank() * k.chains,
                  .weights = RandomStream::init_weights,
                  .pixels = RandomStream::init_pixels,
                  .seed = options_.seed});
}

void ReplayBuffer::queue_starts(Array x, Array from, Array index, Array fresh, int kind, const ResidentImages& images,
                                const IterationState* state, const ChainStart& how) {
    Ops& ops = device_.ops();
    if (options_.form != StartForm::images) return ops.start_images(x, from, index, fresh, scratch(kind, fresh.count), images, state, how);
    const Kind& k = kinds_[static_cast<size_t>(kind)];
    const Array draws{memory_.at(k.draws), DType::u8, fresh.count * static_cast<int64_t>(sizeof(ImageDraw))};
    ops.draw_starts(draws, images.count, state, how, options_.crop, options_.flip);
    ops.crop_flip(x, draws, images, state, BatchDraw{});  // no noise
    if (from.count == 0) return;
    const auto kept = [&] { return Array{memory_.at(k.kept), x.type, x.count}; };
    ops.start_images(kept(), from, index, fresh, {}, images, state, how);  // what is fresh in it is not looked at
    ops.copy_images(x, kept(), fresh);                                     // fresh is 0, or -1 where a chain goes on: one class
}

void ReplayBuffer::store(Array chains, const IterationState* state, int kind) {
    Communicator& ranks = device_.communicator();
    const Kind& k = kinds_[static_cast<size_t>(kind)];
    if (k.all.valid()) {
        const auto all = [&] { return Array{memory_.at(k.all), device_.real_type(), k.job_chains * options_.pixels}; };
        device_.copy(ranks.own(all()).data, chains.data, chains.bytes());
        ranks.all_gather(all());
        chains = all();
    }
    if (k.places.valid()) {
        const auto of_chains = [&](Slot slot) { return Array{memory_.at(slot), DType::i32, k.job_chains}; };
        device_.ops().places_of_oldest(of_chains(k.places), of_chains(k.born), births(), index(kind), fresh(kind), state);
        device_.ops().store_chains(images(), chains, of_chains(k.places), state);
        return device_.ops().store_born(births(), of_chains(k.places), of_chains(k.born), state);
    }
    device_.ops().store_chains(images(), chains, index(kind), state);
    device_.ops().store_births(births(), index(kind), fresh(kind), state);
}

ChainStart ReplayBuffer::fill_draws(int64_t first_chain) const {
    return {.first_chain = first_chain,
            .weights = RandomStream::buffer_fill_weights,
            .pixels = RandomStream::buffer_fill_pixels,
            .seed = options_.seed};
}

void ReplayBuffer::start(Array x, Array classes, int64_t first_chain, const ResidentImages& images, const IterationState* state) {
    queue_starts(x, Array{nullptr, device_.real_type(), 0}, classes, classes, 0, images, state, fill_draws(first_chain));
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
