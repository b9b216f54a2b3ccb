// A network on a device, with one pass that has weight gradients and one that has the input's; and its gradients against differences.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "engine/network/parameters.h"
#include "tests/check.h"
#include "tests/on_device.h"

namespace jem {

class NetworkOnDevice {
public:
    NetworkOnDevice(std::unique_ptr<Network> network, const Extent& images, NormMode mode,
                    std::unique_ptr<Device> device = make_reference_device(DType::f64), Head head = Head::classes)
        : device_(std::move(device)), extent_(images), made_(std::move(network)), network_(*made_), memory_(*device_) {
        weights_pass_ = network_.add_pass({"weights", images.n, mode, Gradients::weights, head});
        input_pass_ = network_.add_pass({"input", images.n, mode, Gradients::input, head});
        parameters_ = std::make_unique<Parameters>(*device_, memory_, network_, Parameters::Options{.gradient = true});
        const size_t bytes = static_cast<size_t>(pixels()) * size_of(device_->real_type());
        images_ = memory_.keep("images", "images", bytes);
        d_images_ = memory_.keep("images", "d_images", bytes);
        state_ = memory_.keep("scalars", "state", sizeof(IterationState));
        network_.build(*device_, memory_, ConvAlgorithm::direct);
        memory_.plan([&] {
            network_.prepare(parameters_->weights(), parameters_->statistics());
            for (const int pass : {weights_pass_, input_pass_}) {
                network_.forward(pass, view(), tensor(images_));
                for (const Output output : {Output::logits, Output::features, Output::first_convolution}) network_.output(pass, output);
                const Tensor d_images = tensor(d_images_);
                network_.d_logits(pass);
                network_.backward(pass, view(), tensor(images_), pass == input_pass_ ? &d_images : nullptr);
            }
        });
        memory_.allocate();
        parameters_->initialise(11);
    }

    const Network& network() const { return network_; }
    Parameters& parameters() { return *parameters_; }
    int64_t pixels() const { return extent_.count(); }
    int64_t outputs() { return network_.logits(input_pass_).count(); }
    Values weights() { return download_values(*device_, parameters_->weights()); }
    Values statistics() { return download_values(*device_, parameters_->statistics()); }
    void set_statistics(const Values& v) { upload_values(*device_, parameters_->statistics(), v); }

    Values logits(const Values& weights, const Values& images, bool input = true) {
        upload_values(*device_, parameters_->weights(), weights);
        upload_values(*device_, array(images_), images);
        network_.prepare(parameters_->weights(), parameters_->statistics());
        const int pass = input ? input_pass_ : weights_pass_;
        network_.forward(pass, view(), tensor(images_));
        return read(network_.logits(pass));
    }
    // What the last forward pass, of input gradients, hands out.
    Tensor output(Output output) { return network_.output(input_pass_, output); }
    Values read(const Tensor& t) { return download_values(*device_, {t.data, t.type, t.count()}); }
    // The gradient of the sum of d_logits * logits.
    Values weight_gradient(const Values& weights, const Values& images, const Values& d_logits) {
        logits(weights, images, false);
        upload_values(*device_, parameters_->gradient(), Values(weights.size()));
        backward(weights_pass_, d_logits, nullptr);
        return download_values(*device_, parameters_->gradient());
    }
    Values input_gradient(const Values& weights, const Values& images, const Values& d_logits) {
        logits(weights, images);
        const Tensor d_images = tensor(d_images_);
        backward(input_pass_, d_logits, &d_images);
        return download_values(*device_, array(d_images_));
    }

private:
    NetworkMemory view() {
        return {.weights = parameters_->weights(),
                .gradient = parameters_->gradient(),
                .statistics = parameters_->statistics(),
                .state = reinterpret_cast<IterationState*>(memory_.at(state_))};
    }
    Tensor tensor(Slot slot) { return {memory_.at(slot), device_->real_type(), extent_.n, extent_.c, extent_.h, extent_.w, extent_.c}; }
    Array array(Slot slot) { return {memory_.at(slot), device_->real_type(), pixels()}; }
    void backward(int pass, const Values& d_logits, const Tensor* d_images) {
        const Tensor t = network_.d_logits(pass);
        upload_values(*device_, {t.data, t.type, t.count()}, d_logits);
        network_.backward(pass, view(), tensor(images_), d_images);
    }

    std::unique_ptr<Device> device_;
    Extent extent_;  // of the images
    std::unique_ptr<Network> made_;
    Network& network_;
    Memory memory_;
    std::unique_ptr<Parameters> parameters_;
    int weights_pass_ = 0, input_pass_ = 0;
    Slot images_, d_images_, state_;
};

inline double dot(const Values& a, const Values& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

inline Values moved(const Values& from, const Values& direction, double by) {
    Values to = from;
    for (size_t i = 0; i < to.size(); ++i) to[i] += by * direction[i];
    return to;
}

// Weights as in the middle of training: norms that differ from 1 and 0.
inline Values random_weights(NetworkOnDevice& on, uint64_t seed) {
    TestData data(seed);
    Values w = on.weights();
    for (const TensorInfo& info : on.network().parameters()) {
        if (info.fan_in > 0) continue;
        for (int64_t i = 0; i < info.count(); ++i)
            w[static_cast<size_t>(info.offset + i)] = info.initial == 1 ? data.uniform(0.5, 1.5) : data.uniform(-0.3, 0.3);
    }
    return w;
}

// Central differences with f64's rounding err by some 1e-15 of the loss / h. Where a LeakyReLU input lies within h of its kink,
// they err by a part of what that one input contributes: h is so small that of these 15,000 inputs none lies there in any of the directions
// (with 1e-6 about one in twenty directions met one), and the data stay the same from run to run.
inline constexpr double kStep = 1e-8, kGradientError = 2e-6;

// All gradients of the network, in f64; none: whether a parameter has none.
inline void check_gradients(NetworkOnDevice& on, const std::function<bool(const TensorInfo&)>& none) {
    TestData data(17);
    const Values w = random_weights(on, 5), x = data.uniforms(on.pixels(), -1, 1);
    const Values d_logits = data.normals(on.outputs());
    Values statistics = on.statistics();
    for (const TensorInfo& info : on.network().statistics())
        for (int64_t i = 0; i < info.count(); ++i)
            statistics[static_cast<size_t>(info.offset + i)] = info.initial == 1 ? data.uniform(0.5, 1.5) : data.uniform(-0.2, 0.2);
    on.set_statistics(statistics);
    const Values d_w = on.weight_gradient(w, x, d_logits), d_x = on.input_gradient(w, x, d_logits);
    // By the pass whose gradient it is: dropout draws masks for each.
    const auto loss = [&](const Values& weights, const Values& images, bool input) {
        return dot(d_logits, on.logits(weights, images, input));
    };
    const auto along = [&](const std::string& what, const Values& gradient, const Values& direction, bool of_weights) {
        const double want = of_weights
                                ? (loss(moved(w, direction, kStep), x, false) - loss(moved(w, direction, -kStep), x, false)) / (2 * kStep)
                                : (loss(w, moved(x, direction, kStep), true) - loss(w, moved(x, direction, -kStep), true)) / (2 * kStep);
        const double got = dot(gradient, direction), scale = 1 + std::fabs(want);
        CHECK_MESSAGE(std::fabs(got - want) <= kGradientError * scale, what, ": got ", got, ", want ", want, ", tolerance ",
                      kGradientError * scale);
        return want;
    };
    for (int i = 0; i < 3; ++i) {
        along("all weights", d_w, data.normals(static_cast<int64_t>(w.size()), 0, 0.1), true);
        along("images", d_x, data.normals(static_cast<int64_t>(x.size())), false);
    }
    // Each tensor for itself: no error hides behind larger gradients.
    for (const TensorInfo& info : on.network().parameters()) {
        Values direction(w.size());
        for (int64_t i = 0; i < info.count(); ++i) direction[static_cast<size_t>(info.offset + i)] = data.normal();
        const double want = along(info.name, d_w, direction, true);
        if (none(info)) {
            CHECK_MESSAGE(std::fabs(want) < kGradientError, info.name, " has a gradient of ", want);
            for (int64_t i = 0; i < info.count(); ++i) CHECK(d_w[static_cast<size_t>(info.offset + i)] == 0);
        } else {
            CHECK_MESSAGE(std::fabs(want) > 1e-6, info.name, " has no gradient");
        }
    }
    check_equal("statistics", on.statistics(), statistics);
}

}  // namespace jem
