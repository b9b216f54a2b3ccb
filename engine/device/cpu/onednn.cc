#include "engine/device/cpu/onednn.h"

#include <stdexcept>

#include "engine/device/out_of_memory.h"

namespace jem::onednn {
namespace {

using dnnl::memory;
using dnnl::prop_kind;

dnnl::stream& cpu_stream() {
    static dnnl::stream stream(cpu_engine());
    return stream;
}

memory::format_tag tag_of(int64_t block) {
    if (block == 0) return memory::format_tag::nhwc;
    return block == 16 ? memory::format_tag::nChw16c : memory::format_tag::nChw8c;
}

memory::data_type type_of(DType type) { return type == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32; }

struct ConvDescs {
    memory::desc x, y, w, bias, d_x, d_w;
    memory::dims strides, padding;

    explicit ConvDescs(const OnednnProblem& p)
        : bias({p.shape.out_channels}, memory::data_type::f32, memory::format_tag::x),
          strides{p.shape.stride.height, p.shape.stride.width},
          padding{p.shape.padding.height, p.shape.padding.width} {
        const auto type = type_of(p.type), f32 = memory::data_type::f32;
        const memory::dims x_dims = {p.batch, p.shape.in_channels, p.shape.height, p.shape.width};
        const memory::dims w_dims = {p.shape.out_channels, p.shape.in_channels, p.shape.kernel.height, p.shape.kernel.width};
        x = {x_dims, type, p.planar_input ? memory::format_tag::nchw : tag_of(p.block)};
        y = {{p.batch, p.shape.out_channels, p.shape.out_height(), p.shape.out_width()}, type, tag_of(p.block)};
        w = {w_dims, type, memory::format_tag::any};
        d_x = p.f32_gradient ? memory::desc(x_dims, f32, tag_of(p.block)) : x;
        d_w = {w_dims, f32, memory::format_tag::any};
    }
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
auto described(const char* what, const OnednnProblem& p, Make make) -> decltype(make()) {
    try {
        return make();
    } catch (const dnnl::error& e) {
        if (e.status == dnnl_out_of_memory) throw OutOfMemory(std::string("oneDNN got none for ") + what + " of " + p.shape.text());
        throw std::runtime_error(std::string("oneDNN has no ") + what + " for " + p.shape.text() + ", batch " + std::to_string(p.batch) +
                                 " (" + e.what() + ").");
    }
}

// 3.x made one step of what 2.x does in two: describe the operation, then look for an implementation.
template <class Primitive, class... Described>
typename Primitive::primitive_desc implement(const dnnl::primitive_attr& attr, const Described&... described) {
#if DNNL_VERSION_MAJOR >= 3
    return {cpu_engine(), described..., attr};
#else
    return {typename Primitive::desc(described...), attr, cpu_engine()};
#endif
}
template <class Primitive, class... Described>
typename Primitive::primitive_desc implement_backward(const dnnl::convolution_forward::primitive_desc& forward,
                                                      const Described&... described) {
#if DNNL_VERSION_MAJOR >= 3
    return {cpu_engine(), described..., forward, attributes(false)};
#else
    return {typename Primitive::desc(described...), attributes(false), cpu_engine(), forward};
#endif
}

dnnl::convolution_forward::primitive_desc forward_desc(const OnednnProblem& p) {
    const ConvDescs d(p);
    return implement<dnnl::convolution_forward>(attributes(p.accumulate), prop_kind::forward_training, dnnl::algorithm::convolution_direct,
                                                d.x, d.w, d.bias, d.y, d.strides, d.padding, d.padding);
}

// Each instruction set is a set of bits that holds those of the sets it extends.
bool has(dnnl::cpu_isa wanted) {
    const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa()), bits = static_cast<unsigned>(wanted);
    return (isa & bits) == bits;
}

}  // namespace

const dnnl::engine& cpu_engine() {
    static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    return engine;
}

int64_t preferred_block() { return has(dnnl::cpu_isa::avx512_core) ? 16 : 8; }

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
            return has(dnnl::cpu_isa::avx512_core_amx) ? "AMX" : "other";
    }
}

bool has_bf16() { return has(dnnl::cpu_isa::avx512_core_bf16); }
bool has_amx() { return has(dnnl::cpu_isa::avx512_core_amx); }

std::shared_ptr<const Made> conv_forward(const OnednnProblem& p) {
    const auto pd = described("forward convolution", p, [&] { return forward_desc(p); });
    return std::make_shared<Made>(
        Made{dnnl::convolution_forward(pd), pd.src_desc(), pd.weights_desc(), pd.dst_desc(), pd.scratchpad_desc(), pd.impl_info_str()});
}

std::shared_ptr<const Made> conv_backward_data(const OnednnProblem& p) {
    const auto pd = described("backward convolution to data", p, [&] {
        const ConvDescs d(p);
        return implement_backward<dnnl::convolution_backward_data>(forward_desc(p), dnnl::algorithm::convolution_direct, d.d_x, d.w, d.y,
                                                                   d.strides, d.padding, d.padding);
    });
    return std::make_shared<Made>(Made{dnnl::convolution_backward_data(pd), pd.diff_src_desc(), pd.weights_desc(), pd.diff_dst_desc(),
                                       pd.scratchpad_desc(), pd.impl_info_str()});
}

std::shared_ptr<const Made> conv_backward_weights(const OnednnProblem& p) {
    const auto pd = described("backward convolution to weights", p, [&] {
        const ConvDescs d(p);
        return implement_backward<dnnl::convolution_backward_weights>(forward_desc(p), dnnl::algorithm::convolution_direct, d.x, d.d_w, d.y,
                                                                      d.strides, d.padding, d.padding);
    });
    return std::make_shared<Made>(Made{dnnl::convolution_backward_weights(pd), pd.src_desc(), pd.diff_weights_desc(), pd.diff_dst_desc(),
                                       pd.scratchpad_desc(), pd.impl_info_str()});
}

std::shared_ptr<const Made> matmul(const Matrix& a, const Matrix& b, bool bias, bool accumulate) {
    const auto f32 = memory::data_type::f32;
    const memory::desc src({a.rows, a.columns}, f32, memory::dims{a.row_stride, a.column_stride});
    const memory::desc weights({b.rows, b.columns}, f32, memory::dims{b.row_stride, b.column_stride});
    const memory::desc dst({a.rows, b.columns}, f32, memory::format_tag::ab);
    const auto pd =
        bias ? implement<dnnl::matmul>(attributes(accumulate), src, weights, memory::desc({1, b.columns}, f32, memory::format_tag::ab), dst)
             : implement<dnnl::matmul>(attributes(accumulate), src, weights, dst);
    return std::make_shared<Made>(Made{dnnl::matmul(pd), src, weights, dst, pd.scratchpad_desc(), pd.impl_info_str()});
}

std::shared_ptr<const Made> reorder(const memory::desc& from, const memory::desc& to, bool accumulate) {
    const dnnl::reorder::primitive_desc pd(cpu_engine(), from, cpu_engine(), to, attributes(accumulate));
    return std::make_shared<Made>(Made{dnnl::reorder(pd), from, {}, to, pd.scratchpad_desc(), pd.impl_info_str()});
}

memory::desc weights_ohwi(const ConvShape& s) {
    const int64_t height = s.kernel.height, width = s.kernel.width, i = s.in_channels;
    return {{s.out_channels, i, height, width}, memory::data_type::f32, memory::dims{height * width * i, 1, width * i, i}};
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
    if (status == dnnl_out_of_memory) throw OutOfMemory("oneDNN got none for " + made_->engine);
    if (status != dnnl_success)
        throw std::runtime_error("oneDNN could not run " + made_->engine + " (status " + std::to_string(static_cast<int>(status)) + ").");
}

}  // namespace jem::onednn
