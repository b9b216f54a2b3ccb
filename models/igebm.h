// IGEBM's residual network (Du & Mordatch 2019): 3x3 convolutions and LeakyReLU 0.2, no norms but the spectral one of the weights, blocks
// whose width doubles and whose maps halve three times, a sum over space. Theirs ends in one unit; here the heads are those of every
// network, so that an energy of an image and a class is a logit, and shifts and gains are the same for all classes.
#pragma once

#include <optional>
#include <vector>

#include "engine/files/safetensors.h"
#include "models/layers.h"
#include "models/sizes.h"

namespace jem {

struct IgebmSettings {
    int64_t depth = 14,
            width = 8;  // 2 layers a block and 2 more: 14 (theirs: ResNet32) or 20 (ResNet32Large); 16 * width channels at first
    bool spectral_norm = true;
    int64_t in_channels = 3, image_size = 32, num_classes = 10;
    double dropout = 0;  // share of the values behind a block's first convolution; theirs has 0.5 at depth 20
    uint64_t seed = 0;   // of dropout
    bool energy_head = false;
};

std::optional<UnsupportedSize> unsupported_size(const IgebmSettings& settings);
// What the shapes of a file's tensors tell, where they are those of such a network.
std::optional<IgebmSettings> igebm_from_shapes(const SafetensorsFile& file);

class Igebm final : public LayeredNetwork {
public:
    // Throws std::invalid_argument for sizes out of range.
    explicit Igebm(const IgebmSettings& settings);

    std::vector<std::string> idle_prefixes() const override { return idle_heads(); }
    void forward(int pass, const NetworkMemory& memory, const Tensor& images) override;
    void backward(int pass, const NetworkMemory& memory, const Tensor& images, const Tensor* d_images) override;

private:
    struct Block {
        const Norm *shift1 = nullptr, *shift2 = nullptr, *gain = nullptr;
        const Conv *conv1 = nullptr, *conv2 = nullptr, *shortcut = nullptr;  // shortcut: null where the block's input is added as it is
        bool halves = false;
        DropoutLayer dropout = {};
    };
    struct BlockTensors {
        PassTensor shifted, a, again, c, z, out;  // forward; a (behind the first LeakyReLU), c (behind conv2) and out stay
        PassTensor d_z, d_c, d_a, d_x, d_shortcut, again1, again2;
    };
    struct Tensors {
        PassTensor stem, start, tail, d_tail;
        std::vector<BlockTensors> blocks;
    };

    void add_tensors(int pass) override;
    PassTensor first_convolution(int pass) const override { return tensors_[static_cast<size_t>(pass)].stem; }

    IgebmSettings settings_;
    const Conv* stem_ = nullptr;
    const Norm *leaky_ = nullptr, *relu_ = nullptr;  // no norms: activations alone
    std::vector<Block> blocks_;
    std::vector<Tensors> tensors_;  // by pass
};

}  // namespace jem
