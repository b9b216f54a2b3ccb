// JEM's Wide-ResNet d-k: pre-activation blocks, LeakyReLU 0.2, every convolution with a bias, 1x1 shortcuts on the raw block input
// (Zagoruyko & Komodakis 2016 as used by JEM, JEM++ and SADA-JEM). Tensor names are those of the public checkpoints.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/files/safetensors.h"
#include "models/layers.h"
#include "models/sizes.h"

namespace jem {

struct WideResNetSettings {
    int64_t depth = 28, width = 10;  // depth = 6n + 4
    NormKind norm = NormKind::batch;
    NormBatch norm_batch = NormBatch::of_rank;
    bool recompute = false;                                      // keep a block's input alone; its first convolution runs again
    int64_t in_channels = 3, image_size = 32, num_classes = 10;  // 64 pixels and more: a fourth group
    bool spectral_norm = false;
    double dropout = 0;        // share of the values between a block's convolutions
    uint64_t seed = 0;         // of dropout
    bool energy_head = false;  // besides the classes' a head of one unit: Head::energy
};

std::optional<UnsupportedSize> unsupported_size(const WideResNetSettings& settings);

// The depth, width, norm, channels and classes that the shapes of a file's tensors tell; what they don't is as in `otherwise`.
WideResNetSettings settings_from_shapes(const SafetensorsFile& file, const WideResNetSettings& otherwise);

class WideResNet final : public LayeredNetwork {
public:
    // Throws std::invalid_argument for a depth that is not 6n + 4, or sizes out of range.
    explicit WideResNet(const WideResNetSettings& settings);

    std::vector<std::string> idle_prefixes() const override { return idle_heads(); }
    std::vector<std::string> unread_prefixes() const override;
    void forward(int pass, const NetworkMemory& memory, const Tensor& images) override;
    void backward(int pass, const NetworkMemory& memory, const Tensor& images, const Tensor* d_images) override;

private:
    struct Block {
        const Norm *norm1 = nullptr, *norm2 = nullptr;
        const Conv *conv1 = nullptr, *conv2 = nullptr, *shortcut = nullptr;  // shortcut: null where the block's input is added as it is
        DropoutLayer dropout = {};                                           // behind conv1
    };
    struct BlockTensors {
        PassTensor a1, h, a2, y;          // forward; the block's input is the y before it. h and y are kept for the backward pass
        PassTensor again1, again2;        // a1 and a2 once more, for the weight gradients, where they were not kept
        PassTensor again_h, again_a1;     // h once more where it was not kept, and a1 for that
        PassTensor d_h, d_x, d_shortcut;  // gradients of h, of the block's input, of what the shortcut passes on
    };
    struct Tensors {
        PassTensor stem, tail, d_tail;
        std::vector<BlockTensors> blocks;
    };

    static Next behind_first(const Block& block, NormMode mode);
    Next behind(size_t block, NormMode mode) const { return {block + 1 < blocks_.size() ? blocks_[block + 1].norm1 : tail_, mode}; }
    // Whether a1 and a2 stay for the weight gradients.
    bool keeps_activations(int pass) const;
    void add_tensors(int pass) override;
    PassTensor first_convolution(int pass) const override { return tensors_[static_cast<size_t>(pass)].stem; }
    Tensors& of(int pass) { return tensors_[static_cast<size_t>(pass)]; }

    WideResNetSettings settings_;
    const Conv* stem_ = nullptr;
    std::vector<Block> blocks_;
    const Norm* tail_ = nullptr;
    std::vector<Tensors> tensors_;  // by pass
};

}  // namespace jem
