// Inception-v3 (Szegedy et al. 2016, arXiv 1512.00567) as the Fréchet Inception Distance has it: the network of 2015-12-05 with 1008
// logits, whose average pools leave their padding out, and whose last block pools by maximum. Of use forward, with running statistics.
// Tensor names are those of pytorch-fid's file of weights.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/network/parameters.h"
#include "models/layers.h"

namespace jem {

// How images x in [-1, 1] are brought to the network.
enum class InceptionInput {
    pytorch_fid,  // resized by pixel centres; x as it is
    tf1,          // resized by pixel corners; (p - 128) / 128 of p = 255 (x + 1) / (2 + 1e-5), as in the evaluation of JEM's authors
};

struct InceptionSettings {
    int64_t height = 32, width = 32, in_channels = 3;  // of the images; of one channel they are grey, and it becomes all three
    InceptionInput input = InceptionInput::pytorch_fid;
    LinearBias logits_bias = LinearBias::none;  // the Inception Score's logits have none
    int64_t size = 299;                         // what images are resized to, both ways; 75 and more
};

// Of use as a batch: the activations of so many images of 299 pixels take a quarter of a GiB in f32, 8 MiB an image.
inline constexpr int64_t kInceptionBatch = 32;

class Inception final : public LayeredNetwork {
public:
    // Throws std::invalid_argument for sizes that are out of range.
    explicit Inception(const InceptionSettings& settings);

    std::vector<std::string> idle_prefixes() const override;
    std::string weights_advice() const override;
    // std::logic_error for a pass that has gradients.
    int add_pass(const PassSettings& settings) override;
    void forward(int pass, const NetworkMemory& memory, const Tensor& images) override;
    // std::logic_error: there is none.
    void backward(int pass, const NetworkMemory& memory, const Tensor& images, const Tensor* d_images) override;

    // What a block makes, of the activation type, [N, C, H, W]; a convolution of the stem is a block, behind norm and ReLU, and so are
    // "maxpool1" and "maxpool2". Valid as output() is.
    std::vector<std::string> blocks() const;
    Tensor block(int pass, const std::string& name);

private:
    struct Layer {  // convolution without bias, norm, ReLU
        const Conv* conv;
        const Norm* norm;
    };
    struct Branch {
        std::optional<Pooling> pooling;
        std::vector<Layer> chain, ends;  // one behind the other; then, if there are any, all of the last one's output
    };
    struct Block {
        std::string name;
        std::vector<Branch> branches;
        int64_t in_channels, in_size, channels, size;
    };
    struct BranchTensors {
        PassTensor pooled;
        std::vector<PassTensor> chain, ends;
    };
    struct BlockTensors {
        std::vector<BranchTensors> branches;
        PassTensor whole;  // what the branches make, concatenated

        std::vector<const PassTensor*> parts() const;  // of the whole; a single one is the whole itself
        const PassTensor& y() const { return parts().size() == 1 ? *parts().front() : whole; }
    };
    struct Tensors {
        PassTensor resized;  // R [N, size, size, 3]
        std::vector<BlockTensors> blocks;
    };

    struct LayerSpec;
    struct BranchSpec;
    void add_block(const std::string& name, const std::vector<BranchSpec>& branches);
    void add_tensors(int pass) override;
    PassTensor first_convolution(int pass) const override { return of(pass).blocks.front().y(); }
    const Tensors& of(int pass) const { return tensors_[static_cast<size_t>(pass)]; }
    // y = ReLU(norm(conv(x)))
    void run(const Layer& layer, int pass, const NetworkMemory& m, const PassTensor& y, const Tensor& x);

    InceptionSettings settings_;
    std::vector<Block> blocks_;
    std::vector<Tensors> tensors_;  // by pass
};

// pytorch-fid's weights, converted, into the parameters of an Inception. InputError where there is no such file, or one whose tensors are
// not all the network's.
void load_inception_weights(Parameters& parameters, const std::string& path);

}  // namespace jem
