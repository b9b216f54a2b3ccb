#include "engine/device/cpu/onednn.h"

#include <stdexcept>

namespace jem::onednn {
namespace {

using dnnl::memory;
using dnnl::prop_kind;

dnnl::stream& cpu_stream() {
    static dnnl::stream stream(cpu_engine());
    return stream;
}

memory::format_tag blocked(int64_t block) { return block == 16 ? memory::format_tag::nChw16c : memory::format_tag::nChw8c; }

struct ConvDescs {
    memory::desc x, y, w, bias;
    memory::dims strides, padding;
    dnnl::algorithm algorithm;

    explicit ConvDescs(const ConvProblem& p)
        : x({p.batch, p.shape.in_channels, p.shape.height, p.shape.width}, memory::data_type::f32, blocked(p.block)),
          y({p.batch, p.shape.out_channels, p.shape.out_height(), p.shape.out_width()}, memory::data_type::f32, blocked(p.block)),
          w({p.shape.out_channels, p.shape.in_channels, p.shape.kernel, p.shape.kernel}, memory::data_type::f32, memory::format_tag::any),
          bias({p.shape.out_channels}, memory::data_type::f32, memory::format_tag::x),
          strides{p.shape.stride, p.shape.stride},
          padding{p.shape.padding(), p.shape.padding()},
          algorithm(p.winograd ? dnnl::algorithm::convolution_winograd : dnnl::algorithm::convolution_direct) {}
};

dnnl::primitive_attr attributes(bool accumulate) {
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // else execute allocates
    if (accumulate) {
        dnnl::post_ops ops;
        ops.append_sum(1.0f);
        attr.set_post_ops(ops);
    }
    return attr;
}

// make() builds a primitive descriptor; oneDNN answers "unimplemented" by an exception.
template <class Make>
auto described(const char* what, const ConvProblem& p, Make make) -> std::unique_ptr<decltype(make())> {
    try {
        return std::make_unique<decltype(make())>(make());
    } catch (const dnnl::error& e) {
        if (p.winograd) return nullptr;
        throw std::runtime_error(std::string("oneDNN has no ") + what + " for " + p.shape.text() + ", batch " + std::to_string(p.batch) +
                                 " (" + e.what() + ").");
    }
}

dnnl::convolution_forward::primitive_desc forward_desc(const ConvProblem& p) {
    const ConvDescs d(p);
    return {
        dnnl::convolution_forward::desc(prop_kind::forward_training, d.algorithm, d.x, d.w, d.bias, d.y, d.strides, d.padding, d.padding),
        attributes(p.accumulate), cpu_engine()};
}

}  // namespace

const dnnl::engine& cpu_engine() {
    static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    return engine;
}

int64_t preferred_block() {
    const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa()), avx512 = static_cast<unsigned>(dnnl::cpu_isa::avx512_core);
    return (isa & avx512) == avx512 ? 16 : 8;
}

std::string version() {
    const dnnl_version_t* v = dnnl_version();
    return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
}

std::string instruction_set() {
    switch (dnnl::get_effective_cpu_isa()) {
        case dnnl::cpu_isa::sse41:
            return "SSE4.1";
        case dnnl::cpu_isa::avx:
            return "AVX";
        case dnnl::cpu_isa::avx2:
            return "AVX2";
        case dnnl::cpu_isa::avx512_core:
            return "AVX-512";
        case dnnl::cpu_isa::avx512_core_vnni:
            return "AVX-512 VNNI";
        case dnnl::cpu_isa::avx512_core_bf16:
            return "AVX-512 BF16";
        case dnnl::cpu_isa::avx512_core_amx:
            return "AMX";
        default:
            return "other";
    }
}

std::shared_ptr<const Made> conv_forward(const ConvProblem& p) {
    const auto pd = described("forward convolution", p, [&] { return forward_desc(p); });
    if (pd == nullptr) return nullptr;
    return std::make_shared<Made>(Made{dnnl::convolution_forward(*pd), pd->src_desc(), pd->weights_desc(), pd->dst_desc(),
                                       pd->scratchpad_desc(), pd->impl_info_str()});
}

std::shared_ptr<const Made> conv_backward_data(const ConvProblem& p) {
    const auto pd = described("backward convolution to data", p, [&] {
        const ConvDescs d(p);
        return dnnl::convolution_backward_data::primitive_desc(
            dnnl::convolution_backward_data::desc(d.algorithm, d.x, d.w, d.y, d.strides, d.padding, d.padding), attributes(false),
            cpu_engine(), forward_desc(p));
    });
    if (pd == nullptr) return nullptr;
    return std::make_shared<Made>(Made{dnnl::convolution_backward_data(*pd), pd->diff_src_desc(), pd->weights_desc(), pd->diff_dst_desc(),
                                       pd->scratchpad_desc(), pd->impl_info_str()});
}

std::shared_ptr<const Made> conv_backward_weights(const ConvProblem& p) {
    const auto pd = described("backward convolution to weights", p, [&] {
        const ConvDescs d(p);
        return dnnl::convolution_backward_weights::primitive_desc(
            dnnl::convolution_backward_weights::desc(d.algorithm, d.x, d.w, d.y, d.strides, d.padding, d.padding), attributes(false),
            cpu_engine(), forward_desc(p));
    });
    if (pd == nullptr) return nullptr;
    return std::make_shared<Made>(Made{dnnl::convolution_backward_weights(*pd), pd->src_desc(), pd->diff_weights_desc(),
                                       pd->diff_dst_desc(), pd->scratchpad_desc(), pd->impl_info_str()});
}

std::shared_ptr<const Made> matmul(const Matrix& a, const Matrix& b, bool bias, bool accumulate) {
    const auto f32 = memory::data_type::f32;
    const memory::desc src({a.rows, a.columns}, f32, memory::dims{a.row_stride, a.column_stride});
    const memory::desc weights({b.rows, b.columns}, f32, memory::dims{b.row_stride, b.column_stride});
    const memory::desc dst({a.rows, b.columns}, f32, memory::format_tag::ab);
    const auto desc = bias ? dnnl::matmul::desc(src, weights, memory::desc({1, b.columns}, f32, memory::format_tag::ab), dst)
                           : dnnl::matmul::desc(src, weights, dst);
    const dnnl::matmul::primitive_desc pd(desc, attributes(accumulate), cpu_engine());
    return std::make_shared<Made>(Made{dnnl::matmul(pd), src, weights, dst, pd.scratchpad_desc(), pd.impl_info_str()});
}

std::shared_ptr<const Made> reorder(const memory::desc& from, const memory::desc& to, bool accumulate) {
    const dnnl::reorder::primitive_desc pd(cpu_engine(), from, cpu_engine(), to, attributes(accumulate));
    return std::make_shared<Made>(Made{dnnl::reorder(pd), from, {}, to, pd.scratchpad_desc(), pd.impl_info_str()});
}

memory::desc weights_ohwi(const ConvShape& s) {
    const int64_t k = s.kernel, i = s.in_channels;
    return {{s.out_channels, i, k, k}, memory::data_type::f32, memory::dims{k * k * i, 1, k * i, i}};
}

Call::Call(std::shared_ptr<const Made> made, const std::vector<Argument>& arguments) : made_(std::move(made)) {
    for (const Argument& a : arguments) {
        memories_.emplace_back(a.desc, cpu_engine(), const_cast<void*>(a.data));  // oneDNN has no view of constant memory
        arguments_.push_back({a.id, memories_.back().get()});
    }
}

void Call::run() const {
    const dnnl_status_t status =
        dnnl_primitive_execute(made_->primitive.get(), cpu_stream().get(), static_cast<int>(arguments_.size()), arguments_.data());
    if (status != dnnl_success)
        throw std::runtime_error("oneDNN could not run " + made_->engine + " (status " + std::to_string(static_cast<int>(status)) + ").");
}

}  // namespace jem::onednn
