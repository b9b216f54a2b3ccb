#include "engine/device/cuda/convolution/problem.h"

#include <cstdint>
#include <stdexcept>

#include "kernels/ops.h"

namespace jem {

DType activation_type(CudaPrecision precision) { return precision == CudaPrecision::bf16 ? DType::bf16 : DType::f32; }

const char* pass_name(ConvPass pass) {
    switch (pass) {
        case ConvPass::forward:
            return "forward";
        case ConvPass::backward_data:
            return "backward_data";
        case ConvPass::backward_weights:
            return "backward_weights";
    }
    return "?";
}

const char* fusion_name(Fusion fusion) {
    switch (fusion) {
        case Fusion::none:
            return "nothing else";
        case Fusion::bias:
            return "bias";
        case Fusion::bias_residual:
            return "bias and residual";
        case Fusion::bias_sums:
            return "bias and sums";
        case Fusion::bias_residual_sums:
            return "bias, residual and sums";
        case Fusion::norm_leaky:
            return "norm and leaky in front, bias";
        case Fusion::norm_leaky_residual:
            return "norm and leaky in front, bias and residual";
        case Fusion::norm_leaky_sums:
            return "norm and leaky in front, bias and sums";
        case Fusion::norm_leaky_residual_sums:
            return "norm and leaky in front, bias, residual and sums";
        case Fusion::leaky_backward_sums:
            return "leaky backward and sums";
        case Fusion::accumulate:
            return "accumulation";
    }
    return "?";
}

ConvPass pass_of(Fusion fusion) {
    switch (fusion) {
        case Fusion::leaky_backward_sums:
            return ConvPass::backward_data;
        case Fusion::accumulate:
            return ConvPass::backward_weights;
        default:
            return ConvPass::forward;
    }
}

bool has_norm(Fusion f) {
    return f == Fusion::norm_leaky || f == Fusion::norm_leaky_residual || f == Fusion::norm_leaky_sums ||
           f == Fusion::norm_leaky_residual_sums;
}
bool has_residual(Fusion f) {
    return f == Fusion::bias_residual || f == Fusion::bias_residual_sums || f == Fusion::norm_leaky_residual ||
           f == Fusion::norm_leaky_residual_sums;
}
bool has_sums(Fusion f) {
    return f == Fusion::bias_sums || f == Fusion::bias_residual_sums || f == Fusion::norm_leaky_sums ||
           f == Fusion::norm_leaky_residual_sums || f == Fusion::leaky_backward_sums;
}

std::vector<ConvOperand> operands_of(const ConvProblem& p) {
    const ConvShape& s = p.shape;
    const DType type = activation_type(p.precision);
    const auto channels = [](ConvRole role, int64_t c) { return ConvOperand{role, {1, c, 1, 1}, DType::f32}; };
    const ConvOperand x{ConvRole::x, {p.batch, s.in_channels, s.height, s.width}, type};
    const ConvOperand w{
        ConvRole::w, {s.out_channels, s.in_channels, s.kernel.height, s.kernel.width}, p.fusion == Fusion::accumulate ? DType::f32 : type};
    const ConvOperand y{ConvRole::y, {p.batch, s.out_channels, s.out_height(), s.out_width()}, type};
    std::vector<ConvOperand> out = {x, w, y};
    const bool leaky_backward = p.fusion == Fusion::leaky_backward_sums;
    if (p.fusion != Fusion::none && pass_of(p.fusion) == ConvPass::forward) out.push_back(channels(ConvRole::bias, s.out_channels));
    if (has_residual(p.fusion)) out.push_back({ConvRole::residual, y.dims, type});
    if (has_norm(p.fusion) || leaky_backward) {
        out.push_back(channels(ConvRole::scale, s.in_channels));
        out.push_back(channels(ConvRole::shift, s.in_channels));
    }
    if (leaky_backward) out.push_back({ConvRole::norm_input, x.dims, type});
    if (has_sums(p.fusion))
        for (const ConvRole role : {ConvRole::centre, ConvRole::sum, ConvRole::sum_of_products})
            out.push_back(channels(role, leaky_backward ? s.in_channels : s.out_channels));
    if (p.fusion == Fusion::accumulate) out.push_back({ConvRole::accumulated_w, w.dims, DType::f32});
    return out;
}

const char* role_name(ConvRole role) {
    constexpr std::array names = {"x",
                                  "w",
                                  "y",
                                  "bias",
                                  "residual",
                                  "scale",
                                  "shift",
                                  "norm input",
                                  "centre",
                                  "sum",
                                  "sum of products",
                                  "accumulated w",
                                  "turned w",
                                  "tiled w",
                                  "turned and tiled w"};
    static_assert(names.size() == kConvRoles);
    return names[static_cast<size_t>(role)];
}

ConvRole role_of(WeightForm form) {
    switch (form) {
        case WeightForm::turned:
            return ConvRole::turned_w;
        case WeightForm::tiled:
            return ConvRole::tiled_w;
        case WeightForm::turned_tiled:
            return ConvRole::turned_tiled_w;
        case WeightForm::plain:
            break;
    }
    return ConvRole::w;
}

void write_weights(Ops& ops, WeightForm form, Array to, Array from, const ConvShape& shape) {
    const int64_t rows = shape.out_channels, taps = shape.kernel.area();
    switch (form) {
        case WeightForm::plain:
            return ops.convert(to, from);
        case WeightForm::turned:
            return ops.turn_weights(to, from, rows, taps);
        case WeightForm::tiled:
        case WeightForm::turned_tiled:
            return ops.tile_weights(to, from, rows, taps, form == WeightForm::turned_tiled);
    }
}

void ConvPointers::give_sums(const Array& sums) {
    (*this)[ConvRole::sum] = sums.data;
    (*this)[ConvRole::sum_of_products] = sums.slice(sums.count / 2, sums.count / 2).data;
}

void check_addresses(const ConvProblem& problem, const ConvPointers& pointers, WeightForm form) {
    const bool reads_weights = problem.pass != ConvPass::backward_weights;
    for (const ConvOperand& o : operands_of(problem)) {
        const ConvRole role = o.role == ConvRole::w && reads_weights ? role_of(form) : o.role;
        if (pointers[role] == nullptr || reinterpret_cast<uintptr_t>(pointers[role]) % kConvAlignment != 0)
            throw std::runtime_error("A convolution (" + problem.shape.text() + ", " + pass_name(problem.pass) + ", " +
                                     fusion_name(problem.fusion) + ") was given operands of which " + role_name(role) +
                                     " is missing or not aligned to " + std::to_string(kConvAlignment) + " bytes.");
    }
}

ConvPointers pointers_to(void* x, const void* w, void* y) {
    ConvPointers p;
    p[ConvRole::x] = x;
    p[ConvRole::w] = const_cast<void*>(w);
    p[ConvRole::y] = y;
    return p;
}

}  // namespace jem
