#include "engine/network/predictor.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/network/parameters.h"

namespace jem {

void Predictions::append(const Predictions& more) {
    classes = more.classes;
    logits.insert(logits.end(), more.logits.begin(), more.logits.end());
    lse.insert(lse.end(), more.lse.begin(), more.lse.end());
    gradient_norms.insert(gradient_norms.end(), more.gradient_norms.begin(), more.gradient_norms.end());
    labels.insert(labels.end(), more.labels.begin(), more.labels.end());
}

Predictor::Predictor(Device& device, Memory& memory, Network& network, const ImageSize& size, const Options& options)
    : device_(device),
      memory_(memory),
      network_(network),
      size_(size),
      batch_(std::min(options.batch > 0 ? options.batch : network.best_batch(device, kLargestBatch), options.largest)),
      wants_(options.wants),
      features_(options.features) {
    if (batch_ == 0) return;  // an empty set
    const auto values = static_cast<size_t>(batch_ * size.pixels());
    const size_t real = size_of(device.real_type());
    const Gradients of_energy = wants_ == Wants::gradients ? Gradients::input : Gradients::none;
    const bool own_head = options.energy_head == Head::energy;
    PassSettings pass{.name = "prediction of " + std::to_string(batch_),
                      .batch = batch_,
                      .norm = NormMode::running,
                      .gradients = own_head ? Gradients::none : of_energy};
    pass_ = energy_pass_ = network.add_pass(pass);
    if (own_head) {
        pass.name = "energies of " + std::to_string(batch_);
        pass.gradients = of_energy;
        pass.head = Head::energy;
        energy_pass_ = network.add_pass(pass);
    }
    images_ = memory.transient("predicted images", values * real);
    bytes_ = memory.transient("predicted images' bytes", values);
    lse_ = memory.transient("predictions' lse", static_cast<size_t>(batch_) * real);
    if (wants_ == Wants::gradients) gradients_ = memory.transient("predicted images' gradient", values * real);
}

Tensor Predictor::images() {
    return {memory_.at(images_), device_.real_type(), batch_, size_.channels, size_.height, size_.width, size_.channels};
}

void Predictor::plan(const NetworkMemory& memory) {
    if (batch_ == 0) return;
    const Tensor x = images();
    device_.ops().pixel_values({x.data, x.type, x.count()}, {memory_.at(bytes_), DType::u8, x.count()});
    queue(memory);
}

void Predictor::queue(const NetworkMemory& memory) {
    Ops& ops = device_.ops();
    const auto lse = [&] { return Array{memory_.at(lse_), device_.real_type(), batch_}; };
    network_.forward(pass_, memory, images());
    if (energy_pass_ != pass_) network_.forward(energy_pass_, memory, images());
    ops.log_sum_exp(lse(), network_.logits(energy_pass_));
    if (wants_ == Wants::gradients) {
        ops.lse_backward(network_.d_logits(energy_pass_), network_.logits(energy_pass_), lse());
        Tensor d_x = images();
        d_x.data = memory_.at(gradients_);
        network_.backward(energy_pass_, memory, images(), &d_x);
    }
    network_.logits(pass_), lse();  // live until here
    if (features_) network_.output(pass_, Output::features);
}

Predictor::Batch Predictor::run_batch(int64_t first, int64_t n, const Source& source, const NetworkMemory& memory) {
    const Array x{images().data, device_.real_type(), n * size_.pixels()};
    source(x, first);
    queue(memory);
    device_.synchronize();
    const Tensor logits = network_.logits(pass_);
    Batch batch{.first = first,
                .count = n,
                .logits = {logits.data, logits.type, n * logits.c},
                .lse = {memory_.at(lse_), device_.real_type(), n},
                .features = {},
                .gradients = {}};
    if (features_) {
        const Tensor features = network_.output(pass_, Output::features);
        batch.features = {features.data, features.type, n * features.c};
    }
    if (wants_ == Wants::gradients) batch.gradients = {memory_.at(gradients_), device_.real_type(), x.count};
    return batch;
}

void Predictor::run(int64_t count, const Source& source, const NetworkMemory& memory, const Visit& visit) {
    for (int64_t first = 0; first < count; first += batch_) visit(run_batch(first, std::min(batch_, count - first), source, memory));
}

Predictions Predictor::predict_batch(int64_t first, int64_t count, const Source& source, const NetworkMemory& memory) {
    const Batch batch = run_batch(first, count, source, memory);
    Predictions out;
    out.classes = batch.logits.count / count;
    out.logits = download_values(device_, batch.logits);
    out.lse = download_values(device_, batch.lse);
    if (batch.gradients.count > 0) {
        const std::vector<double> gradients = download_values(device_, batch.gradients);
        for (auto row = gradients.begin(); row != gradients.end(); row += size_.pixels())
            out.gradient_norms.push_back(std::sqrt(std::inner_product(row, row + size_.pixels(), row, 0.0)));
    }
    return out;
}

Predictions Predictor::predict(int64_t count, const Source& source, const NetworkMemory& memory, const Progress& progress) {
    Predictions out;
    for (int64_t first = 0; first < count; first += batch_) {
        out.append(predict_batch(first, std::min(batch_, count - first), source, memory));
        if (progress) progress(std::min(count, first + batch_));
    }
    return out;
}

Predictor::Source Predictor::images_of(const ImageSet& set) {
    if (set.count() > 0) require_size(set, size_.channels, size_.height, size_.width);
    return bytes(set.pixels);
}

Predictor::Source Predictor::bytes(std::span<const uint8_t> pixels) {
    return [this, pixels](const Array& to, int64_t first) {
        const Array staged{memory_.at(bytes_), DType::u8, to.count};
        device_.upload(staged.data, pixels.data() + first * size_.pixels(), staged.bytes());
        device_.ops().pixel_values(to, staged);
    };
}

Predictor::Source Predictor::values(std::span<const double> pixels) {
    return [this, pixels](const Array& to, int64_t first) {
        upload_values(device_, to, pixels.subspan(static_cast<size_t>(first * size_.pixels()), static_cast<size_t>(to.count)));
    };
}

}  // namespace jem
