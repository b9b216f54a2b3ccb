#include "tests/models/two_layer_network.h"

namespace jem {
namespace {

constexpr Pooling kPooling{
    .kind = PoolKind::max, .rows = {.kernel = 3, .stride = 2, .padding = 1}, .columns = {.kernel = 3, .stride = 2, .padding = 1}};

}  // namespace

TwoLayerNetwork::TwoLayerNetwork(const TwoLayerSettings& s) {
    conv_ = add_conv("conv",
                     {.shape = {.in_channels = s.in_channels, .out_channels = s.channels, .height = s.image_size, .width = s.image_size},
                      .bias = ConvBias::none,
                      .sums = true,
                      .input = ConvInput::images});
    norm_ = add_norm("norm", s.channels, {.epsilon = 1e-3, .momentum = 0.1, .slope = 0});
    dropout_ = add_dropout(s.dropout, s.seed);
    add_head(Head::classes, "head", s.channels, s.num_classes);
}

void TwoLayerNetwork::add_tensors(int pass) {
    const ConvShape& s = conv_->shape();
    const auto smaller = [&](const char* name) {
        return hidden(pass, name, s.out_channels, kPooling.rows.outputs(s.height), kPooling.columns.outputs(s.width));
    };
    tensors_.push_back({.h = output_of(pass, "h", *conv_),
                        .a = output_of(pass, "a", *conv_),
                        .pooled = smaller("pooled"),
                        .dropped = smaller("dropped"),
                        .d_pooled = smaller("d_pooled"),
                        .d_h = output_of(pass, "d_h", *conv_)});
}

void TwoLayerNetwork::forward(int pass, const NetworkMemory& m, const Tensor& images) {
    const Tensors& t = of(pass);
    const NormMode mode = pass_settings(pass).norm;
    const ForNorm left = convolve(*conv_, m, at(t.h), images, {norm_, mode});
    statistics_of(*norm_, m, mode, at(t.h), left);
    activate(*norm_, m, at(t.a), at(t.h));
    ops().pool(at(t.pooled), at(t.a), kPooling);
    ops().mean_pool(at(ends(pass).features), drop(dropout_, pass, m, t.dropped, at(t.pooled)));
    apply_head(pass, m);
}

void TwoLayerNetwork::backward(int pass, const NetworkMemory& m, const Tensor& images, const Tensor* d_images) {
    const Tensors& t = of(pass);
    const PassSettings& settings = pass_settings(pass);
    head_backward(pass, m);
    ops().mean_pool_backward(at(t.d_pooled), at(ends(pass).d_features));
    drop(dropout_, pass, m, t.d_pooled, at(t.d_pooled));
    ops().pool_backward(at(t.d_h), at(t.d_pooled), at(t.a), kPooling);
    activate_backward(*norm_, m, settings, at(t.d_h), at(t.h), nullptr, {});
    if (settings.gradients == Gradients::weights)
        convolve_weights(*conv_, m, settings.norm, images, at(t.d_h));
    else
        convolve_data(*conv_, *d_images, at(t.d_h));
    await_weights();
}

}  // namespace jem
