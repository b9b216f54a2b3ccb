#include "models/wide_resnet.h"

#include <utility>

namespace jem {
namespace {

constexpr int64_t kStemChannels = 16;

// What a norm's tensors tell of its kind. Instance and layer norms have the same ones, and a batch norm may lack some by mistake: of these
// three it is the one that was asked for.
NormKind norm_of(const SafetensorsFile& file, const std::string& name, NormKind otherwise) {
    if (file.has(name + ".loc")) return NormKind::act;
    if (!file.has(name + ".weight")) return NormKind::none;
    const bool without_statistics = otherwise == NormKind::instance || otherwise == NormKind::layer;
    return without_statistics && !file.has(name + ".running_mean") ? otherwise : NormKind::batch;
}

}  // namespace

std::optional<UnsupportedSize> unsupported_size(const WideResNetSettings& s) {
    if (s.depth < 10 || (s.depth - 4) % 6 != 0) return {{"--depth", s.depth, "a Wide-ResNet has depth 6n + 4: 10, 16, 22, 28 ..."}};
    return unsupported_image(s.width, s.in_channels, s.image_size, s.num_classes);
}

WideResNetSettings settings_from_shapes(const SafetensorsFile& file, const WideResNetSettings& otherwise) {
    WideResNetSettings s = otherwise;
    // A dimension of a tensor with so many of them; 0 where there is none such.
    const auto dimension = [&](const char* name, size_t dimensions, size_t which) {
        const bool known = file.has(name) && file.at(name).shape.size() == dimensions;
        return known ? file.at(name).shape[which] : 0;
    };
    const auto take = [](int64_t& to, int64_t value) {
        if (value > 0) to = value;
    };
    int64_t blocks = 0;
    while (file.has("f.layer1." + std::to_string(blocks) + ".conv1.weight")) ++blocks;
    if (blocks > 0) {
        s.depth = 6 * blocks + 4;
        s.norm = norm_of(file, file.has("f.bn1.weight") || file.has("f.bn1.loc") ? "f.bn1" : "f.layer1.0.bn1", otherwise.norm);
    }
    take(s.width, dimension("f.layer1.0.conv1.weight", 4, 0) / kStemChannels);
    take(s.in_channels, dimension("f.conv1.weight", 4, 1));
    take(s.num_classes, dimension("class_output.weight", 2, 0));
    return s;
}

WideResNet::WideResNet(const WideResNetSettings& settings) : LayeredNetwork(settings.norm_batch), settings_(settings) {
    require_supported(unsupported_size(settings_));
    const int64_t blocks_a_group = (settings_.depth - 4) / 6;
    const int64_t groups = settings_.image_size >= 64 ? 4 : 3;
    int64_t size = settings_.image_size, channels = kStemChannels;
    // With batch norms one is behind every convolution, behind a shortcut once the block's output has been added.
    const bool normed = settings_.norm == NormKind::batch;
    const ConvBias bias = normed ? ConvBias::normalised : settings_.norm == NormKind::instance ? ConvBias::centred : ConvBias::own;
    const NormSettings norm{.kind = settings_.norm};
    const auto conv = [&](int64_t in, int64_t out, int64_t kernel, int64_t stride) {
        return ConvSettings{
            .shape = {.in_channels = in, .out_channels = out, .height = size, .width = size, .kernel = kernel, .stride = stride},
            .bias = bias,
            .sums = normed && kernel == 3,
            .spectral = settings_.spectral_norm ? SpectralForm::full : SpectralForm::none};
    };
    ConvSettings stem = conv(settings_.in_channels, channels, 3, 1);
    stem.input = ConvInput::images;
    stem_ = add_conv("f.conv1", stem);
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t i = 0; i < blocks_a_group; ++i) {
            const std::string name = "f.layer" + std::to_string(g + 1) + "." + std::to_string(i);
            const int64_t out = (kStemChannels << g) * settings_.width, stride = i == 0 && g > 0 ? 2 : 1;
            ConvSettings conv1 = conv(channels, out, 3, 1), conv2 = conv(out, out, 3, stride);
            Block b;
            // What is dropped in part is no constant any more.
            if (settings_.dropout > 0) conv1.bias = ConvBias::own;
            conv1.for_norm_alone = normed && settings_.dropout == 0;
            conv1.in_front = b.norm1 = add_norm(name + ".bn1", channels, norm);
            b.conv1 = add_conv(name + ".conv1", conv1);
            conv2.in_front = b.norm2 = add_norm(name + ".bn2", out, norm);
            if (settings_.dropout > 0) b.dropout = add_dropout(settings_.dropout, settings_.seed);
            conv2.residual = true;
            b.conv2 = add_conv(name + ".conv2", conv2);
            if (stride != 1 || channels != out) b.shortcut = add_conv(name + ".shortcut.0", conv(channels, out, 1, stride));
            size = conv2.shape.out_height();
            channels = out;
            blocks_.push_back(b);
        }
    tail_ = add_norm("f.bn1", channels, norm);
    add_heads(channels, settings_.num_classes, settings_.energy_head);
}

// JEM's unused layer, JEM++'s second names of the same tensors.
std::vector<std::string> WideResNet::unread_prefixes() const { return {"f.linear.", "f.layer_one.", "f.other_layers."}; }

void WideResNet::add_tensors(int pass) {
    const auto input = [&](const Conv* conv, const char* what) { return input_of(pass, conv->name + what, *conv); };
    const auto output = [&](const Conv* conv, const char* what) { return output_of(pass, conv->name + what, *conv); };
    Tensors t;
    t.stem = output_of(pass, "stem", *stem_);
    for (const Block& b : blocks_)
        t.blocks.push_back({.a1 = input(b.conv1, "/input"),
                            .h = output(b.conv1, ""),
                            .a2 = input(b.conv2, "/input"),
                            .y = output(b.conv2, ""),
                            .again1 = input(b.conv1, "/input again"),
                            .again2 = input(b.conv2, "/input again"),
                            .again_h = output(b.conv1, " again"),
                            .again_a1 = input(b.conv1, "/input, recomputed"),
                            .d_h = input(b.conv2, "/d_input"),
                            .d_x = input(b.conv1, "/d_input"),
                            .d_shortcut = input(b.conv1, "/d_shortcut")});
    const Conv& last = *blocks_.back().conv2;
    t.tail = output_of(pass, "tail", last);
    t.d_tail = output_of(pass, "d_tail", last);
    tensors_.push_back(std::move(t));
}

// Sums of what is dropped in part afterwards are nobody's.
LayeredNetwork::Next WideResNet::behind_first(const Block& b, NormMode mode) { return b.dropout.rate > 0 ? Next{} : Next{b.norm2, mode}; }

// Four tensors a block of a pass need no more memory than the two that one of twice as many images needs anyhow.
bool WideResNet::keeps_activations(int pass) const {
    return !settings_.recompute && 2 * pass_settings(pass).batch <= most_images(Gradients::weights);
}

// The network, forward and backward, side by side --------------------------------------------------------------------------

void WideResNet::forward(int pass, const NetworkMemory& m, const Tensor& images) {
    Tensors& p = of(pass);
    const NormMode mode = pass_settings(pass).norm;
    ForNorm left = convolve(*stem_, m, at(p.stem), images, {blocks_.front().norm1, mode});
    const PassTensor* x = &p.stem;
    for (size_t i = 0; i < blocks_.size(); ++i) {
        const Block& b = blocks_[i];
        const BlockTensors& t = p.blocks[i];
        statistics_of(*b.norm1, m, mode, at(*x), left);
        left = activate_and_convolve(*b.conv1, m, at(t.h), &t.a1, at(*x), nullptr, behind_first(b, mode));
        drop(b.dropout, pass, m, t.h, at(t.h));
        statistics_of(*b.norm2, m, mode, at(t.h), left);
        if (b.shortcut != nullptr) convolve(*b.shortcut, m, at(t.y), at(*x));
        const Tensor residual = b.shortcut != nullptr ? at(t.y) : at(*x);
        left = activate_and_convolve(*b.conv2, m, at(t.y), &t.a2, at(t.h), &residual, behind(i, mode));
        x = &t.y;
    }
    statistics_of(*tail_, m, mode, at(*x), left);
    activate(*tail_, m, at(p.tail), at(*x));
    ops().mean_pool(at(ends(pass).features), at(p.tail));
    apply_head(pass, m);
}

void WideResNet::backward(int pass, const NetworkMemory& m, const Tensor& images, const Tensor* d_images) {
    Tensors& p = of(pass);
    const PassSettings& settings = pass_settings(pass);
    const NormMode mode = settings.norm;
    const bool weights = settings.gradients == Gradients::weights;
    // Where sampling has half as many images as the labelled batch, as in the paper, its two tensors a block need what one needs there.
    const bool recompute = settings_.recompute && weights, keeps = keeps_activations(pass);
    head_backward(pass, m);
    ops().mean_pool_backward(at(p.d_tail), at(ends(pass).d_features));
    activate_backward(*tail_, m, settings, at(p.d_tail), at(p.blocks.back().y), nullptr, {});
    const PassTensor* d_y = &p.d_tail;
    for (size_t i = blocks_.size(); i-- > 0;) {
        const Block& b = blocks_[i];
        const BlockTensors& t = p.blocks[i];
        const PassTensor& x = i > 0 ? p.blocks[i - 1].y : p.stem;
        const PassTensor& h = recompute ? t.again_h : t.h;
        const bool in_a1 = keeps && leaves_activation(*b.conv1, settings.batch, false, behind_first(b, mode));
        const bool in_a2 = keeps && leaves_activation(*b.conv2, settings.batch, true, behind(i, mode));
        const PassTensor *kept1 = in_a1 ? &t.a1 : nullptr, *kept2 = in_a2 ? &t.a2 : nullptr;
        // With the sums that forward asked for, though nobody reads them: the same form gives the same bits.
        if (recompute) {
            activate_and_convolve(*b.conv1, m, at(h), &t.again_a1, at(x), nullptr, behind_first(b, mode));
            drop(b.dropout, pass, m, h, at(h));
        }
        if (weights) activate_and_convolve_weights(*b.conv2, m, mode, t.again2, at(h), at(*d_y), kept2);
        Array sums = convolve_data(*b.conv2, m, mode, at(t.d_h), at(*d_y), at(h));
        activate_backward(*b.norm2, m, settings, at(t.d_h), at(h), nullptr, sums);
        drop(b.dropout, pass, m, t.d_h, at(t.d_h));
        if (weights) activate_and_convolve_weights(*b.conv1, m, mode, t.again1, at(x), at(t.d_h), kept1);
        sums = convolve_data(*b.conv1, m, mode, at(t.d_x), at(t.d_h), at(x));
        if (b.shortcut != nullptr) {
            if (weights) convolve_weights(*b.shortcut, m, mode, at(x), at(*d_y));
            convolve_data(*b.shortcut, at(t.d_shortcut), at(*d_y));
        }
        const Tensor residual = b.shortcut != nullptr ? at(t.d_shortcut) : at(*d_y);
        activate_backward(*b.norm1, m, settings, at(t.d_x), at(x), &residual, sums);
        await_weights();
        d_y = &t.d_x;
    }
    if (weights)
        convolve_weights(*stem_, m, mode, images, at(*d_y));
    else
        convolve_data(*stem_, *d_images, at(*d_y));
    await_weights();
}

}  // namespace jem
