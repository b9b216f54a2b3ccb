#include "models/igebm.h"

#include <string>
#include <utility>

namespace jem {
namespace {

constexpr int64_t kChannelsOfAWidth = 16, kParts = 3;  // parts: each halves once, at its first block
constexpr Pooling kHalf{.kind = PoolKind::average, .rows = {.kernel = 2, .stride = 2}, .columns = {.kernel = 2, .stride = 2}};
// The second convolution begins next to nothing, so that a block begins as its shortcut.
constexpr double kFirstDeviation = 1, kSecondDeviation = 1e-10;

}  // namespace

std::optional<UnsupportedSize> unsupported_size(const IgebmSettings& s) {
    if (s.depth != 14 && s.depth != 20) return {{"--depth", s.depth, "IGEBM's network has depth 14 or 20"}};
    return unsupported_image(s.width, s.in_channels, s.image_size, s.num_classes);
}

std::optional<IgebmSettings> igebm_from_shapes(const SafetensorsFile& file) {
    const auto weight = [&](const std::string& name) { return file.has(name) ? file.at(name).shape : std::vector<int64_t>{}; };
    const std::vector<int64_t> stem = weight("f.conv1.weight"), head = weight("class_output.weight");
    if (weight("f.block0.conv1.weight").size() != 4 || stem.size() != 4 || head.size() != 2) return std::nullopt;
    IgebmSettings s;
    int64_t blocks = 0;
    while (file.has("f.block" + std::to_string(blocks) + ".conv1.weight")) ++blocks;
    s.depth = 2 * blocks + 2;
    s.width = stem[0] / kChannelsOfAWidth;
    s.in_channels = stem[1];
    s.num_classes = head[0];
    s.spectral_norm = file.has("f.conv1.weight_u");
    return s;
}

Igebm::Igebm(const IgebmSettings& settings) : settings_(settings) {
    require_supported(unsupported_size(settings_));
    int64_t size = settings_.image_size, channels = kChannelsOfAWidth * settings_.width;
    const auto conv = [&](int64_t in, int64_t out, SpectralForm form = SpectralForm::full) {
        return ConvSettings{.shape = {.in_channels = in, .out_channels = out, .height = size, .width = size, .kernel = 3},
                            .bias = ConvBias::none,
                            .spectral = settings_.spectral_norm ? form : SpectralForm::none,
                            .deviation = settings_.spectral_norm ? (form == SpectralForm::cap ? kSecondDeviation : kFirstDeviation) : 0};
    };
    const auto affine = [](bool shifts) { return NormSettings{.kind = NormKind::act, .shifts = shifts, .scales = !shifts, .slope = 1}; };
    ConvSettings stem = conv(settings_.in_channels, channels);
    stem.input = ConvInput::images;
    stem_ = add_conv("f.conv1", stem);
    leaky_ = add_norm("", channels, {.kind = NormKind::none});
    relu_ = add_norm("", channels, {.kind = NormKind::none, .slope = 0});
    // At depth 14 the first part has a block less that keeps its width than the others have; at depth 20 all have three.
    const int64_t blocks_a_part = (settings_.depth - 2) / 2 / kParts;
    const bool large = settings_.depth == 20;
    for (int64_t part = 0; part < kParts; ++part)
        for (int64_t i = 0; i < blocks_a_part; ++i) {
            const std::string name = "f.block" + std::to_string(blocks_.size());
            const int64_t doublings = large ? part : part > 0 ? 1 : 0;
            const int64_t out = (kChannelsOfAWidth * settings_.width) << doublings;
            Block b;
            b.halves = i == 0;
            ConvSettings conv1 = conv(channels, out), conv2 = conv(out, out, SpectralForm::cap), shortcut = conv(channels, out);
            conv1.in_front = b.shift1 = add_norm(name + ".shift1", channels, affine(true));
            b.conv1 = add_conv(name + ".conv1", conv1);
            if (settings_.dropout > 0) b.dropout = add_dropout(settings_.dropout, settings_.seed);
            conv2.in_front = b.shift2 = add_norm(name + ".shift2", out, affine(true));
            b.conv2 = add_conv(name + ".conv2", conv2);
            b.gain = add_norm(name + ".gain", out, affine(false));
            shortcut.residual = true;
            if (channels != out) b.shortcut = add_conv(name + ".shortcut", shortcut);
            if (b.halves) size /= 2;
            channels = out;
            blocks_.push_back(b);
        }
    add_heads(channels, settings_.num_classes, settings_.energy_head);
}

void Igebm::add_tensors(int pass) {
    const auto input = [&](const Conv* conv, const char* what) { return input_of(pass, conv->name + what, *conv); };
    const auto output = [&](const Conv* conv, const char* what) { return output_of(pass, conv->name + what, *conv); };
    Tensors t;
    t.stem = output_of(pass, "stem", *stem_);
    t.start = output_of(pass, "start", *stem_);
    for (const Block& b : blocks_) {
        const ConvShape& s = b.conv2->shape();
        const int64_t by = b.halves ? 2 : 1;
        t.blocks.push_back({.shifted = input(b.conv1, "/input"),
                            .a = output(b.conv1, ""),
                            .again = input(b.conv2, "/input"),
                            .c = output(b.conv2, ""),
                            .z = output(b.conv2, "/sum"),
                            .out = hidden(pass, b.conv2->name + "/out", s.out_channels, s.height / by, s.width / by),
                            .d_z = output(b.conv2, "/d_sum"),
                            .d_c = output(b.conv2, "/d_output"),
                            .d_a = input(b.conv2, "/d_input"),
                            .d_x = input(b.conv1, "/d_input"),
                            .d_shortcut = input(b.conv1, "/d_shortcut"),
                            .again1 = input(b.conv1, "/input again"),
                            .again2 = input(b.conv2, "/input again")});
    }
    const PassTensor& last = t.blocks.back().out;
    t.tail = hidden(pass, "tail", last.view.c, last.view.h, last.view.w);
    t.d_tail = hidden(pass, "d_tail", last.view.c, last.view.h, last.view.w);
    tensors_.push_back(std::move(t));
}

// The network, forward and backward, side by side --------------------------------------------------------------------------

void Igebm::forward(int pass, const NetworkMemory& m, const Tensor& images) {
    const Tensors& p = tensors_[static_cast<size_t>(pass)];
    const NormMode mode = pass_settings(pass).norm;
    convolve(*stem_, m, at(p.stem), images);
    activate(*leaky_, m, at(p.start), at(p.stem));
    const PassTensor* x = &p.start;
    for (size_t i = 0; i < blocks_.size(); ++i) {
        const Block& b = blocks_[i];
        const BlockTensors& t = p.blocks[i];
        for (const Norm* affine : {b.shift1, b.shift2, b.gain}) statistics_of(*affine, m, mode, at(*x));
        activate_and_convolve(*b.conv1, m, at(t.a), &t.shifted, at(*x), nullptr, {});
        drop(b.dropout, pass, m, t.a, at(t.a));
        activate(*leaky_, m, at(t.a), at(t.a));
        activate_and_convolve(*b.conv2, m, at(t.c), &t.again, at(t.a), nullptr, {});
        activate(*b.gain, m, at(t.z), at(t.c));
        if (b.shortcut != nullptr) {
            const Tensor z = at(t.z);
            activate_and_convolve(*b.shortcut, m, z, nullptr, at(*x), &z, {});
        } else {
            add(at(t.z), at(t.z), at(*x));
        }
        if (b.halves) ops().pool(at(t.out), at(t.z), kHalf);
        activate(*leaky_, m, at(t.out), at(b.halves ? t.out : t.z));
        x = &t.out;
    }
    activate(*relu_, m, at(p.tail), at(*x));
    ops().mean_pool(at(ends(pass).features), at(p.tail), PoolOver::sum);
    apply_head(pass, m);
}

void Igebm::backward(int pass, const NetworkMemory& m, const Tensor& images, const Tensor* d_images) {
    const Tensors& p = tensors_[static_cast<size_t>(pass)];
    const PassSettings& settings = pass_settings(pass);
    const NormMode mode = settings.norm;
    const bool weights = settings.gradients == Gradients::weights;
    head_backward(pass, m);
    ops().mean_pool_backward(at(p.d_tail), at(ends(pass).d_features), PoolOver::sum);
    activate_backward(*relu_, m, settings, at(p.d_tail), at(p.blocks.back().out), nullptr, {});
    const PassTensor* d_out = &p.d_tail;
    for (size_t i = blocks_.size(); i-- > 0;) {
        const Block& b = blocks_[i];
        const BlockTensors& t = p.blocks[i];
        const PassTensor& x = i > 0 ? p.blocks[i - 1].out : p.start;
        activate_backward(*leaky_, m, settings, at(*d_out), at(t.out), nullptr, {});
        // Averages do not ask what they were of.
        if (b.halves) ops().pool_backward(at(t.d_z), at(*d_out), at(t.d_z), kHalf);
        const PassTensor& d_z = b.halves ? t.d_z : *d_out;
        if (weights) affine_weights(*b.gain, m, at(d_z), at(t.c));
        activate(*b.gain, m, at(t.d_c), at(d_z));  // it is its own transpose
        if (weights) activate_and_convolve_weights(*b.conv2, m, mode, t.again2, at(t.a), at(t.d_c));
        convolve_data(*b.conv2, at(t.d_a), at(t.d_c));
        if (weights) affine_weights(*b.shift2, m, at(t.d_a), at(t.a));
        activate_backward(*leaky_, m, settings, at(t.d_a), at(t.a), nullptr, {});
        drop(b.dropout, pass, m, t.d_a, at(t.d_a));
        if (weights) activate_and_convolve_weights(*b.conv1, m, mode, t.again1, at(x), at(t.d_a));
        convolve_data(*b.conv1, at(t.d_x), at(t.d_a));
        if (weights) affine_weights(*b.shift1, m, at(t.d_x), at(x));
        if (b.shortcut != nullptr) {
            if (weights) convolve_weights(*b.shortcut, m, mode, at(x), at(d_z));
            convolve_data(*b.shortcut, at(t.d_shortcut), at(d_z));
        }
        add(at(t.d_x), at(t.d_x), at(b.shortcut != nullptr ? t.d_shortcut : d_z));
        await_weights();
        d_out = &t.d_x;
    }
    activate_backward(*leaky_, m, settings, at(*d_out), at(p.start), nullptr, {});
    if (weights)
        convolve_weights(*stem_, m, mode, images, at(*d_out));
    else
        convolve_data(*stem_, *d_images, at(*d_out));
    await_weights();
}

}  // namespace jem
