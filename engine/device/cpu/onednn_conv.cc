#include "engine/device/cpu/conv_plan.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "engine/device/cpu/image_gradient.h"
#include "engine/device/cpu/onednn.h"

namespace jem {
namespace {

using onednn::aligned;
using onednn::Call;
using onednn::Made;
using onednn::OnednnProblem;
using onednn::submit_calls;
using MadePtr = std::shared_ptr<const Made>;

// A batch is taken in parts whose input stays in a cache between the norm that writes it and the convolution that reads it: strided
// ones are up to 1.8 times as fast then. Measured in iterations of WRN-10-2 and 16-4, parts of 1 to 256 MiB.
constexpr size_t kHotBytes = size_t{8} << 20;
// Weight gradients gain from smaller parts, but each part's is added to the others': its input is several times as large.
size_t hot_bytes_of_weights(const ConvShape& shape) {
    return std::max(size_t{4} << 20, 4 * sizeof(float) * static_cast<size_t>(shape.weight_count()));
}

// [rows, from] -> [rows, to], the new channels 0 (to > from) or left out (to < from).
void repad(float* to, const float* from, int64_t rows, int64_t to_channels, int64_t from_channels, int threads) {
    const int64_t both = std::min(to_channels, from_channels);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < both; ++c) to[r * to_channels + c] = from[r * from_channels + c];
        for (int64_t c = both; c < to_channels; ++c) to[r * to_channels + c] = 0.0f;
    }
}

// What a strided 1x1 convolution reads, as the input of one without a stride.
ConvShape dense(const ConvShape& s) {
    ConvShape d = s;
    d.height = s.out_height();
    d.width = s.out_width();
    d.stride = 1;
    return d;
}

// [N, pixels, C] -> [N, C, pixels]
void to_planes(float* to, const float* from, int64_t images, int64_t pixels, int64_t channels, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < images; ++n)
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t i = 0; i < pixels; ++i) to[(n * channels + c) * pixels + i] = from[(n * pixels + i) * channels + c];
}

// [planes, out height, out width, Block] -> [planes, height, width, Block], a stride apart, and 0 between. Block 0: of so many bytes.
template <size_t Block>
void spread(std::byte* to, const std::byte* from, int64_t planes, const ConvShape& s, size_t bytes, int threads) {
    const size_t block = Block > 0 ? Block : bytes;
    const int64_t height = s.height, width = s.width, down = s.stride.height, across = s.stride.width, columns = s.out_width();
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t plane = 0; plane < planes; ++plane)
        for (int64_t row = 0; row < height; ++row) {
            std::byte* line = to + static_cast<size_t>((plane * height + row) * width) * block;
            std::memset(line, 0, static_cast<size_t>(width) * block);
            if (row % down != 0) continue;
            const std::byte* dense = from + static_cast<size_t>((plane * s.out_height() + row / down) * columns) * block;
            for (int64_t i = 0; i < columns; ++i)
                std::memcpy(line + static_cast<size_t>(i * across) * block, dense + static_cast<size_t>(i) * block, block);
        }
}

class OnednnConvPlan final : public ConvPlan {
public:
    OnednnConvPlan(const CpuConvContext& on, const ConvShape& shape, const ConvOptions& options)
        : stream_(on.stream), ops_(on.ops), threads_(on.threads), type_(on.activation), shape_(shape), name_(shape.text()) {
        const int64_t block = onednn::preferred_block();
        // Images have 1 or 3 channels, from which oneDNN reaches blocks of channels only where each is a plane of its own, and which it
        // does not reach from blocks.
        planar_ = type_ == DType::f32 && shape.in_channels % block != 0;
        rounded_ = type_ != DType::f32 && options.input == ConvInput::images;
        // oneDNN takes three times as long for the gradient of what a strided 1x1 convolution leaves out as for that of what it reads.
        spread_ = takes_activations() && shape.kernel == 1 && shape.padding == 0 && shape.stride.area() > 1;
        if (planar_ && shape.in_channels > block)
            throw std::invalid_argument("A convolution from " + std::to_string(shape.in_channels) + " channels (more than a block of " +
                                        std::to_string(block) + " and no multiple of it). Choose another --width.");
        if (shape.out_channels % block != 0)
            throw std::invalid_argument("A convolution to " + std::to_string(shape.out_channels) + " channels (no multiple of a block of " +
                                        std::to_string(block) + "). Choose another --width.");
        const auto add = [&](int64_t batch, bool backward) {
            Variant v;
            v.batch = batch;
            OnednnProblem p{.shape = shape_,
                            .batch = batch,
                            .block = type_ == DType::f32 ? block : 0,
                            .planar_input = planar_,
                            .type = type_,
                            .f32_gradient = rounded_};
            v.forward = best(p, kHotBytes, onednn::conv_forward);
            v.form_forward = form(v.forward.made->weights);
            if (backward) {
                if (!planar_) {
                    OnednnProblem to_data = p;
                    if (spread_) to_data.shape = dense(shape_);
                    v.backward_data = best(to_data, SIZE_MAX, onednn::conv_backward_data);
                    if (spread_) activation_bytes_ = std::max(activation_bytes_, aligned(v.backward_data.made->src.get_size()));
                    v.form_backward = form(v.backward_data.made->weights);
                }
                v.backward_weights = best(p, hot_bytes_of_weights(shape_), onednn::conv_backward_weights);
                // With AVX2 oneDNN has no more than reference loops for the gradient of one channel's weights, if its planes are not
                // padded.
                v.weights_of_block = planar_ && v.backward_weights.made->is_reference();
                if (v.weights_of_block) {
                    OnednnProblem blocked = p;
                    blocked.planar_input = false;
                    v.backward_weights = best(blocked, SIZE_MAX, onednn::conv_backward_weights);
                }
                v.unpack = onednn::reorder(v.backward_weights.made->weights, onednn::weights_ohwi(shape_), true);
                gradient_bytes_ = std::max(gradient_bytes_, aligned(v.backward_weights.made->weights.get_size()));
            }
            p.accumulate = true;
            v.forward_onto = best(p, kHotBytes, onednn::conv_forward);
            v.form_forward_onto = form(v.forward_onto.made->weights);
            for (const MadePtr& made : {v.forward.made, v.forward_onto.made, v.backward_data.made, v.backward_weights.made, v.unpack})
                if (made != nullptr) scratch_bytes_ = std::max(scratch_bytes_, aligned(made->scratch_bytes()));
            if (!takes_activations())
                staging_bytes_ = std::max(staging_bytes_, aligned(static_cast<size_t>(batch * shape_.height * shape_.width *
                                                                                      (v.weights_of_block ? block : shape_.in_channels)) *
                                                                  sizeof(float)));
            if (takes_activations())
                for (const Part& part : {v.forward, v.forward_onto, v.backward_weights})
                    if (part.made != nullptr) activation_bytes_ = std::max(activation_bytes_, aligned(part.made->src.get_size()));
            variants_.push_back(std::move(v));
        };
        for (const int64_t batch : options.batches) add(batch, true);
        for (const int64_t batch : options.forward_only) add(batch, false);
        if (planar_) {
            of_images_ = prepared_bytes_;
            prepared_bytes_ += aligned(image_gradient::prepared_bytes(shape_));
        }
        for (const Form& form : forms_) scratch_bytes_ = std::max(scratch_bytes_, aligned(form.pack->scratch_bytes()));
    }

    size_t prepared_bytes() const override { return prepared_bytes_; }
    size_t workspace_bytes() const override { return scratch_bytes_ + staging_bytes_ + activation_bytes_ + gradient_bytes_; }

    void prepare(std::byte* prepared, Array weights, std::byte* workspace) override {
        for (const Form& form : forms_)
            submit_calls(stream_, "prepare_weights", {},
                         call(form.pack, workspace,
                              {{DNNL_ARG_FROM, form.pack->src, weights.data}, {DNNL_ARG_TO, form.pack->dst, prepared + form.offset}}));
        if (!planar_) return;
        auto* to = reinterpret_cast<float*>(prepared + of_images_);
        stream_.submit("prepare_weights", {}, [p = of_images(0), to, from = weights.as<float>()] { image_gradient::prepare(p, to, from); });
    }

    void forward(const Tensor& y, const Tensor& x, const std::byte* prepared, Array bias, const Tensor* residual,
                 std::byte* workspace) override {
        forward_fused(y, x, {}, prepared, bias, residual, workspace);
    }

    ConvFusion fuses(int64_t, ConvFusion wanted, bool) const override { return {.activation = wanted.activation && takes_activations()}; }

    void forward_fused(const Tensor& y, const Tensor& x, const FusedForward& with, const std::byte* prepared, Array bias,
                       const Tensor* residual, std::byte* workspace) override {
        const Variant& v = variant(x.n);
        const Part& part = residual != nullptr ? v.forward_onto : v.forward;
        const Made& made = *part.made;
        const std::byte* w = prepared + forms_[residual != nullptr ? v.form_forward_onto : v.form_forward].offset;
        if (residual != nullptr && residual->data != y.data) ops_.convert({y.data, y.type, y.count()}, {residual->data, y.type, y.count()});
        for (int64_t first = 0; first < x.n; first += part.images) {
            const Tensor from = activated(images_of(x, first, part.images), with.norm, workspace);
            submit("conv_forward", part,
                   call(part.made, workspace,
                        {{DNNL_ARG_SRC, made.src, stage(from, workspace)},
                         {DNNL_ARG_WEIGHTS, made.weights, w},
                         {DNNL_ARG_BIAS, bias_desc(), bias.data},
                         {DNNL_ARG_DST, made.dst, images_of(y, first, part.images).data}}));
        }
    }

    void backward_data(const Tensor& d_x, const Tensor& d_y, const std::byte* prepared, std::byte* workspace) override {
        const Variant& v = backward_variant(d_y.n);
        if (planar_) {
            const auto* w = reinterpret_cast<const float*>(prepared + of_images_);
            stream_.submit("conv_backward_data", work(d_y.n), [p = of_images(d_y.n), to = d_x.as<float>(), from = d_y.as<float>(), w] {
                image_gradient::run(p, to, from, w);
            });
            return;
        }
        const Made& made = *v.backward_data.made;
        std::byte* compact = activation(workspace);
        submit("conv_backward_data", v.backward_data,
               call(v.backward_data.made, workspace,
                    {{DNNL_ARG_DIFF_SRC, made.src, spread_ ? compact : d_x.data},
                     {DNNL_ARG_WEIGHTS, made.weights, prepared + forms_[v.form_backward].offset},
                     {DNNL_ARG_DIFF_DST, made.dst, d_y.data}}));
        if (!spread_) return;
        const int64_t block = type_ == DType::f32 ? onednn::preferred_block() : shape_.in_channels;
        stream_.submit("conv_spread", {},
                       [to = static_cast<std::byte*>(d_x.data), compact, planes = d_y.n * shape_.in_channels / block, shape = shape_,
                        bytes = static_cast<size_t>(block) * size_of(type_), threads = threads_] {
                           const auto run = bytes == 64 ? spread<64> : bytes == 32 ? spread<32> : spread<0>;
                           run(to, compact, planes, shape, bytes, threads);
                       });
    }

    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte* workspace) override {
        weights_gradient(d_w, x, nullptr, d_y, workspace);
    }
    bool fuses_weights_activation(int64_t) const override { return takes_activations(); }
    void backward_weights_fused(Array d_w, const Tensor& x, const NormCoefficients& norm, const Tensor& d_y,
                                std::byte* workspace) override {
        weights_gradient(d_w, x, &norm, d_y, workspace);
    }

    std::vector<Choice> choices() const override {
        std::vector<Choice> out;
        for (const Variant& v : variants_) {
            for (const auto& [pass, part] : {std::pair<const char*, const Part&>{"forward", v.forward},
                                             {"backward_data", v.backward_data},
                                             {"backward_weights", v.backward_weights}})
                if (part.made != nullptr)
                    out.push_back({pass,
                                   part.made->engine + (part.images < v.batch ? ", " + std::to_string(part.images) + " at a time" : ""),
                                   v.batch, part.made->scratch_bytes()});
            if (planar_ && v.backward_weights.made != nullptr) out.push_back({"backward_data", "direct", v.batch, 0});
        }
        return out;
    }

private:
    // A primitive for so many images of a batch; the batch is a multiple.
    struct Part {
        MadePtr made;
        int64_t images = 0;
    };
    // A layout of the prepared weights.
    struct Form {
        MadePtr pack;  // [O, H, W, I] -> the layout
        size_t offset;
    };
    struct Variant {
        int64_t batch = 0;
        Part forward, forward_onto, backward_data, backward_weights;
        MadePtr unpack;  // weight gradient -> [O, H, W, I]
        size_t form_forward = 0, form_forward_onto = 0, form_backward = 0;
        bool weights_of_block = false;  // backward_weights takes images padded to a block of channels, not planes
    };

    std::byte* staging(std::byte* workspace) const { return workspace + scratch_bytes_; }
    std::byte* activation(std::byte* workspace) const { return staging(workspace) + staging_bytes_; }
    std::byte* packed_gradient(std::byte* workspace) const { return activation(workspace) + activation_bytes_; }
    dnnl::memory::desc bias_desc() const { return {{shape_.out_channels}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::x}; }

    // hot: bytes of the input that a part should not exceed.
    template <class Make>
    static Part best(OnednnProblem problem, size_t hot, Make make) {
        const size_t image =
            static_cast<size_t>(problem.shape.in_channels * problem.shape.height * problem.shape.width) * size_of(problem.type);
        while (static_cast<size_t>(problem.batch) * image > hot && problem.batch % 2 == 0) problem.batch /= 2;
        return {make(problem), problem.batch};
    }

    // The prepared weights hold each layout that some primitive asks for once.
    size_t form(const dnnl::memory::desc& wanted) {
        for (size_t i = 0; i < forms_.size(); ++i)
            if (forms_[i].pack->dst == wanted) return i;
        forms_.push_back({onednn::reorder(onednn::weights_ohwi(shape_), wanted, false), prepared_bytes_});
        prepared_bytes_ += aligned(wanted.get_size());
        return forms_.size() - 1;
    }

    const Variant& variant(int64_t batch) const {
        for (const Variant& v : variants_)
            if (v.batch == batch) return v;
        throw std::invalid_argument("A convolution of batch " + std::to_string(batch) + " was not planned.");
    }

    const Variant& backward_variant(int64_t batch) const {
        const Variant& v = variant(batch);
        if (v.backward_weights.made == nullptr)
            throw std::invalid_argument("The backward pass of a convolution of batch " + std::to_string(batch) + " was not planned.");
        return v;
    }

    // as_block: planar images go padded to a block of channels.
    const std::byte* stage(const Tensor& x, std::byte* workspace, bool as_block = false) {
        if (takes_activations()) return static_cast<const std::byte*>(x.data);
        std::byte* staged = staging(workspace);
        if (rounded_) {
            ops_.convert({staged, type_, x.count()}, {x.data, DType::f32, x.count()});
        } else {
            auto* to = reinterpret_cast<float*>(staged);
            const float* images = x.as<float>();
            stream_.submit("conv_stage", {},
                           [=, n = x.n, pixels = x.h * x.w, channels = x.c, block = onednn::preferred_block(), threads = threads_] {
                               if (as_block)
                                   repad(to, images, n * pixels, block, channels, threads);
                               else
                                   to_planes(to, images, n, pixels, channels, threads);
                           });
        }
        return staged;
    }

    void weights_gradient(Array d_w, const Tensor& x, const NormCoefficients* norm, const Tensor& d_y, std::byte* workspace) {
        const Variant& v = backward_variant(x.n);
        const Part& part = v.backward_weights;
        const Made& made = *part.made;
        std::byte* packed = packed_gradient(workspace);
        for (int64_t first = 0; first < x.n; first += part.images) {
            const Tensor from = activated(images_of(x, first, part.images), norm, workspace);
            submit("conv_backward_weights", part,
                   call(part.made, workspace,
                        {{DNNL_ARG_SRC, made.src, stage(from, workspace, v.weights_of_block)},
                         {DNNL_ARG_DIFF_WEIGHTS, made.weights, packed},
                         {DNNL_ARG_DIFF_DST, made.dst, images_of(d_y, first, part.images).data}}));
            submit_calls(stream_, "accumulate_weights", {},
                         call(v.unpack, workspace, {{DNNL_ARG_FROM, v.unpack->src, packed}, {DNNL_ARG_TO, v.unpack->dst, d_w.data}}));
        }
    }

    static Tensor images_of(const Tensor& all, int64_t first, int64_t images) {
        Tensor some = all;
        some.n = images;
        some.data = static_cast<std::byte*>(all.data) + static_cast<size_t>(first / images) * some.bytes();
        return some;
    }

    // Images that come in f32, or from too few channels for a block, have nothing in front of them.
    bool takes_activations() const { return !planar_ && !rounded_; }

    // leaky(norm(x)), or x where norm is null
    Tensor activated(const Tensor& x, const NormCoefficients* norm, std::byte* workspace) {
        if (norm == nullptr) return x;
        Tensor a = x;
        a.data = activation(workspace);
        ops_.norm_leaky(a, x, *norm);
        return a;
    }

    Work work(int64_t images) const { return {.flops = shape_.flops() * static_cast<double>(images), .shape = name_.c_str()}; }
    void submit(const char* label, const Part& part, std::shared_ptr<const Call> one) {
        submit_calls(stream_, label, work(part.images), std::move(one));
    }
    image_gradient::Problem of_images(int64_t batch) const {
        return {.shape = shape_, .batch = batch, .lanes = onednn::preferred_block(), .threads = threads_};
    }

    static std::shared_ptr<const Call> call(const MadePtr& made, std::byte* workspace, std::vector<Call::Argument> arguments) {
        arguments.push_back({DNNL_ARG_SCRATCHPAD, made->scratch, workspace});
        return std::make_shared<const Call>(made, arguments);
    }

    HostStream& stream_;
    Ops& ops_;
    int threads_;
    DType type_;
    ConvShape shape_;
    std::string name_;      // of the shape, for profiles
    bool spread_ = false;   // backward to data: the gradient of what is read is made dense, then spread
    bool planar_ = false;   // x is staged as planes, its gradient is image_gradient.h's
    bool rounded_ = false;  // x is f32 images, staged as the activation type; its gradient is f32
    std::vector<Variant> variants_;
    std::vector<Form> forms_;
    size_t prepared_bytes_ = 0;
    size_t of_images_ = 0;  // where the prepared weights of planar_ begin that forms_ does not hold
    // workspace: scratch | staging of x or its gradient | x behind norm and LeakyReLU, or a dense gradient | packed weight gradient
    size_t scratch_bytes_ = 0, staging_bytes_ = 0, activation_bytes_ = 0, gradient_bytes_ = 0;
};

}  // namespace

const CpuConvProvider kOnednnConv = {
    .name = "onednn",
    .supports = [](DType, const ConvShape&, const ConvOptions&) { return true; },
    .plan = [](const CpuConvContext& on, const ConvShape& shape, const ConvOptions& options) -> std::unique_ptr<ConvPlan> {
        return std::make_unique<OnednnConvPlan>(on, shape, options);
    },
};

}  // namespace jem
