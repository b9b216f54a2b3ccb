// The smallest network that is one: convolution without bias, norm, ReLU, max pooling, dropout, mean, linear head. That a second network
// is one file is what it is for.
#pragma once

#include <vector>

#include "models/layers.h"

namespace jem {

struct TwoLayerSettings {
    int64_t in_channels = 3, image_size = 8, channels = 16, num_classes = 4;
    double dropout = 0;
    uint64_t seed = 0;  // of dropout
};

class TwoLayerNetwork final : public LayeredNetwork {
public:
    explicit TwoLayerNetwork(const TwoLayerSettings& settings);

    void forward(int pass, const NetworkMemory& memory, const Tensor& images) override;
    void backward(int pass, const NetworkMemory& memory, const Tensor& images, const Tensor* d_images) override;

private:
    struct Tensors {
        PassTensor h, a, pooled, dropped, d_pooled, d_h;
    };

    void add_tensors(int pass) override;
    PassTensor first_convolution(int pass) const override { return tensors_[static_cast<size_t>(pass)].h; }
    Tensors& of(int pass) { return tensors_[static_cast<size_t>(pass)]; }

    const Conv* conv_ = nullptr;
    const Norm* norm_ = nullptr;
    DropoutLayer dropout_;
    std::vector<Tensors> tensors_;  // by pass
};

}  // namespace jem
