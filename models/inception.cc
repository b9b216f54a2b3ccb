#include "models/inception.h"

#include <filesystem>
#include <stdexcept>
#include <utility>

namespace jem {
namespace {

constexpr int64_t kFeatures = 2048, kLogits = 1008;
constexpr int64_t kSmallest = 75;  // one position is left at the end
constexpr NormSettings kNorm{.epsilon = 1e-3, .slope = 0};
constexpr const char* kHead = "fc";
constexpr const char* kHowToGet =
    "Download pytorch-fid's pt_inception-2015-12-05-6726825d.pth and convert it: tools/convert FILE.pth OUT.safetensors.";

constexpr PoolWindow kStrided{.kernel = 3, .stride = 2}, kSame{.kernel = 3, .stride = 1, .padding = 1};
constexpr Pooling kReduce{.kind = PoolKind::max, .rows = kStrided, .columns = kStrided};
constexpr Pooling kAverage{.kind = PoolKind::average, .rows = kSame, .columns = kSame, .count_padding = false};
constexpr Pooling kMaximum{.kind = PoolKind::max, .rows = kSame, .columns = kSame};

Resizing resizing(InceptionInput input) {
    if (input == InceptionInput::pytorch_fid) return {};
    const double scale = 255 / (2 + 1e-5) / 128;
    return {.from = ResizeFrom::pixel_corners, .scale = scale, .offset = scale - 1};
}

}  // namespace

struct Inception::LayerSpec {
    std::string name;  // within the block; empty: the block's own
    int64_t channels;
    BothSides kernel = 1, stride = 1;
    BothSides padding = {kernel.height / 2, kernel.width / 2};
};
struct Inception::BranchSpec {
    std::vector<LayerSpec> chain;
    std::vector<LayerSpec> ends = {};
    std::optional<Pooling> pooling = {};
};

Inception::Inception(const InceptionSettings& settings) : settings_(settings) {
    if (settings_.size < kSmallest || settings_.height < 1 || settings_.width < 1 ||
        (settings_.in_channels != 1 && settings_.in_channels != 3))
        throw std::invalid_argument("Inception was given images of a size that it does not read.");
    using Branches = std::vector<BranchSpec>;
    const BothSides row{1, 7}, column{7, 1}, short_row{1, 3}, short_column{3, 1};

    const auto alone = [&](const char* name, const LayerSpec& layer) { add_block(name, {{.chain = {layer}}}); };
    alone("Conv2d_1a_3x3", {.name = "", .channels = 32, .kernel = 3, .stride = 2, .padding = 0});
    alone("Conv2d_2a_3x3", {.name = "", .channels = 32, .kernel = 3, .padding = 0});
    alone("Conv2d_2b_3x3", {.name = "", .channels = 64, .kernel = 3});
    add_block("maxpool1", {{.chain = {}, .pooling = kReduce}});
    alone("Conv2d_3b_1x1", {.name = "", .channels = 80});
    alone("Conv2d_4a_3x3", {.name = "", .channels = 192, .kernel = 3, .padding = 0});
    add_block("maxpool2", {{.chain = {}, .pooling = kReduce}});

    const auto a = [&](int64_t pooled) -> Branches {
        return {{.chain = {{"branch1x1", 64}}},
                {.chain = {{"branch5x5_1", 48}, {"branch5x5_2", 64, 5}}},
                {.chain = {{"branch3x3dbl_1", 64}, {"branch3x3dbl_2", 96, 3}, {"branch3x3dbl_3", 96, 3}}},
                {.chain = {{"branch_pool", pooled}}, .pooling = kAverage}};
    };
    add_block("Mixed_5b", a(32));
    add_block("Mixed_5c", a(64));
    add_block("Mixed_5d", a(64));

    add_block("Mixed_6a", {{.chain = {{"branch3x3", 384, 3, 2, 0}}},
                           {.chain = {{"branch3x3dbl_1", 64}, {"branch3x3dbl_2", 96, 3}, {"branch3x3dbl_3", 96, 3, 2, 0}}},
                           {.chain = {}, .pooling = kReduce}});

    const auto c = [&](int64_t narrow) -> Branches {
        return {{.chain = {{"branch1x1", 192}}},
                {.chain = {{"branch7x7_1", narrow}, {"branch7x7_2", narrow, row}, {"branch7x7_3", 192, column}}},
                {.chain = {{"branch7x7dbl_1", narrow},
                           {"branch7x7dbl_2", narrow, column},
                           {"branch7x7dbl_3", narrow, row},
                           {"branch7x7dbl_4", narrow, column},
                           {"branch7x7dbl_5", 192, row}}},
                {.chain = {{"branch_pool", 192}}, .pooling = kAverage}};
    };
    add_block("Mixed_6b", c(128));
    add_block("Mixed_6c", c(160));
    add_block("Mixed_6d", c(160));
    add_block("Mixed_6e", c(192));

    add_block(
        "Mixed_7a",
        {{.chain = {{"branch3x3_1", 192}, {"branch3x3_2", 320, 3, 2, 0}}},
         {.chain = {{"branch7x7x3_1", 192}, {"branch7x7x3_2", 192, row}, {"branch7x7x3_3", 192, column}, {"branch7x7x3_4", 192, 3, 2, 0}}},
         {.chain = {}, .pooling = kReduce}});

    const auto e = [&](const Pooling& pooling) -> Branches {
        return {{.chain = {{"branch1x1", 320}}},
                {.chain = {{"branch3x3_1", 384}}, .ends = {{"branch3x3_2a", 384, short_row}, {"branch3x3_2b", 384, short_column}}},
                {.chain = {{"branch3x3dbl_1", 448}, {"branch3x3dbl_2", 384, 3}},
                 .ends = {{"branch3x3dbl_3a", 384, short_row}, {"branch3x3dbl_3b", 384, short_column}}},
                {.chain = {{"branch_pool", 192}}, .pooling = pooling}};
    };
    add_block("Mixed_7b", e(kAverage));
    add_block("Mixed_7c", e(kMaximum));

    add_head(Head::classes, kHead, kFeatures, kLogits, settings_.logits_bias);
}

void Inception::add_block(const std::string& name, const std::vector<BranchSpec>& branches) {
    Block block{.name = name,
                .branches = {},
                .in_channels = blocks_.empty() ? 3 : blocks_.back().channels,
                .in_size = blocks_.empty() ? settings_.size : blocks_.back().size,
                .channels = 0,
                .size = 0};
    const auto layer = [&](const LayerSpec& spec, int64_t channels, int64_t size) -> Layer {
        const std::string full = spec.name.empty() ? name : name + "." + spec.name;
        const Conv* conv = add_conv(full + ".conv", {.shape = {.in_channels = channels,
                                                               .out_channels = spec.channels,
                                                               .height = size,
                                                               .width = size,
                                                               .kernel = spec.kernel,
                                                               .stride = spec.stride,
                                                               .padding = spec.padding},
                                                     .bias = ConvBias::none,
                                                     .input = blocks_.empty() ? ConvInput::images : ConvInput::activations});
        return {conv, add_norm(full + ".bn", spec.channels, kNorm)};
    };
    for (const BranchSpec& spec : branches) {
        Branch branch{.pooling = spec.pooling, .chain = {}, .ends = {}};
        int64_t channels = block.in_channels, size = spec.pooling ? spec.pooling->rows.outputs(block.in_size) : block.in_size;
        for (const LayerSpec& s : spec.chain) {
            branch.chain.push_back(layer(s, channels, size));
            channels = s.channels;
            size = branch.chain.back().conv->shape().out_height();
        }
        for (const LayerSpec& s : spec.ends) branch.ends.push_back(layer(s, channels, size));
        for (const Layer& end : branch.ends) block.channels += end.norm->channels;
        if (branch.ends.empty()) block.channels += channels;
        block.size = size;
        block.branches.push_back(std::move(branch));
    }
    blocks_.push_back(std::move(block));
}

std::vector<std::string> Inception::idle_prefixes() const {
    if (settings_.logits_bias == LinearBias::own) return {};
    return {std::string(kHead) + ".bias"};
}

std::string Inception::weights_advice() const { return kHowToGet; }

int Inception::add_pass(const PassSettings& settings) {
    if (settings.gradients != Gradients::none)
        throw std::logic_error("Pass " + settings.name + " wants gradients, but Inception has no backward pass.");
    return LayeredNetwork::add_pass(settings);
}

void Inception::add_tensors(int pass) {
    Tensors t;
    t.resized = image_like(pass, "resized", 3, settings_.size, settings_.size);
    for (const Block& b : blocks_) {
        BlockTensors& block = t.blocks.emplace_back();
        block.whole = hidden(pass, b.name, b.channels, b.size, b.size);
        const auto output = [&](const Layer& layer) { return output_of(pass, layer.conv->name, *layer.conv); };
        for (const Branch& branch : b.branches) {
            BranchTensors& of_branch = block.branches.emplace_back();
            if (branch.pooling) {
                const int64_t size = branch.pooling->rows.outputs(b.in_size);
                of_branch.pooled = hidden(pass, b.name + ".pooled", b.in_channels, size, size);
            }
            for (const Layer& layer : branch.chain) of_branch.chain.push_back(output(layer));
            for (const Layer& layer : branch.ends) of_branch.ends.push_back(output(layer));
        }
    }
    tensors_.push_back(std::move(t));
}

std::vector<const PassTensor*> Inception::BlockTensors::parts() const {
    std::vector<const PassTensor*> found;
    for (const BranchTensors& branch : branches) {
        for (const PassTensor& end : branch.ends) found.push_back(&end);
        if (branch.ends.empty()) found.push_back(branch.chain.empty() ? &branch.pooled : &branch.chain.back());
    }
    return found;
}

void Inception::run(const Layer& layer, int pass, const NetworkMemory& m, const PassTensor& y, const Tensor& x) {
    const NormMode mode = pass_settings(pass).norm;
    convolve(*layer.conv, m, at(y), x);
    statistics_of(*layer.norm, m, mode, at(y));
    activate(*layer.norm, m, at(y), at(y));
}

void Inception::forward(int pass, const NetworkMemory& m, const Tensor& images) {
    const Tensors& p = of(pass);
    ops().resize(at(p.resized), images, resizing(settings_.input));
    const PassTensor* x = &p.resized;
    for (size_t i = 0; i < blocks_.size(); ++i) {
        const BlockTensors& t = p.blocks[i];
        for (size_t j = 0; j < t.branches.size(); ++j) {
            const Branch& branch = blocks_[i].branches[j];
            const BranchTensors& of_branch = t.branches[j];
            const PassTensor* from = x;
            if (branch.pooling) {
                ops().pool(at(of_branch.pooled), at(*x), *branch.pooling);
                from = &of_branch.pooled;
            }
            for (size_t k = 0; k < branch.chain.size(); ++k) {
                run(branch.chain[k], pass, m, of_branch.chain[k], at(*from));
                from = &of_branch.chain[k];
            }
            for (size_t k = 0; k < branch.ends.size(); ++k) run(branch.ends[k], pass, m, of_branch.ends[k], at(*from));
        }
        if (t.parts().size() > 1) {
            std::vector<Tensor> parts;
            for (const PassTensor* part : t.parts()) parts.push_back(at(*part));
            ops().concatenate(at(t.whole), parts);
        }
        x = &t.y();
    }
    ops().mean_pool(at(ends(pass).features), at(*x));
    apply_head(pass, m);
}

void Inception::backward(int, const NetworkMemory&, const Tensor&, const Tensor*) {
    throw std::logic_error("Inception has no backward pass.");
}

std::vector<std::string> Inception::blocks() const {
    std::vector<std::string> names;
    for (const Block& block : blocks_) names.push_back(block.name);
    return names;
}

Tensor Inception::block(int pass, const std::string& name) {
    for (size_t i = 0; i < blocks_.size(); ++i)
        if (blocks_[i].name == name) return at(of(pass).blocks[i].y());
    throw std::logic_error("Inception has no block " + name + ".");
}

void load_inception_weights(Parameters& parameters, const std::string& path) {
    if (!std::filesystem::exists(path))
        throw InputError("There is no file " + path + " (FID's Inception weights are not part of this program). " + kHowToGet);
    parameters.load(SafetensorsFile::read(path), path, {});
}

}  // namespace jem
