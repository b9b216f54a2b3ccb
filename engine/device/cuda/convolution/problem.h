// One convolution of one batch size and one pass, alone or with what stands before and behind it, and what it reads and writes:
// what every engine is asked for, whoever provides it.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "engine/device/convolution.h"
#include "engine/device/cuda/gpu.h"
#include "kernels/tensor.h"

namespace jem {

class Ops;

enum class ConvPass { forward, backward_data, backward_weights };
const char* pass_name(ConvPass pass);  // "forward" ...

// What is computed in one graph with the convolution. a = leaky(scale[c] * x + shift[c]) is batch norm with its coefficients
// folded, and the activation behind it. Biases, scales and sums are f32 [C]. Sums are taken over N, H, W: of d = y - centre[c] and of
// d^2, y as it is stored.
enum class Fusion {
    none,
    bias,                      // forward: y = conv(x) + bias
    bias_residual,             // forward: y = conv(x) + bias + residual; residual may be y
    bias_sums,                 // forward: y = conv(x) + bias, sum(d), sum(d^2)
    bias_residual_sums,        // forward: y = conv(x) + bias + residual, sum(d), sum(d^2); residual may be y
    norm_leaky,                // forward: the same four of a
    norm_leaky_residual,       //
    norm_leaky_sums,           //
    norm_leaky_residual_sums,  //
    leaky_backward_sums,       // backward to data: d_z = d_a * leaky'(z), sum(d_z), sum(d_z * (x - centre)), where x is the norm's input
                               // and z = scale * (x - centre) + shift: centre is its mean, shift its beta
    accumulate,                // backward to weights, onto f32: d_w = d_w + gradient
};
const char* fusion_name(Fusion fusion);  // "bias" ...
ConvPass pass_of(Fusion fusion);         // none: forward, though it goes with all
bool has_norm(Fusion fusion);            // norm and leaky of the forward pass
bool has_residual(Fusion fusion);
bool has_sums(Fusion fusion);  // of either pass

inline constexpr std::array kForwardFusions = {
    Fusion::bias,       Fusion::bias_residual,       Fusion::bias_sums,       Fusion::bias_residual_sums,
    Fusion::norm_leaky, Fusion::norm_leaky_residual, Fusion::norm_leaky_sums, Fusion::norm_leaky_residual_sums};
inline constexpr std::array kBackwardFusions = {Fusion::leaky_backward_sums, Fusion::accumulate};
// The forward pass with its bias and with these ops around it.
constexpr Fusion forward_with(ConvFusion around, bool residual) {
    return kForwardFusions[(around.activation ? 4u : 0u) + (around.sums ? 2u : 0u) + (residual ? 1u : 0u)];
}

// A pass and what is computed with it.
struct ConvPart {
    ConvPass pass = ConvPass::forward;
    Fusion fusion = Fusion::none;
    auto operator<=>(const ConvPart&) const = default;
};

// Of activations, and of weights as engines read them.
DType activation_type(CudaPrecision precision);

struct ConvProblem {
    ConvShape shape;
    int64_t batch = 0;
    ConvPass pass = ConvPass::forward;
    Fusion fusion = Fusion::none;
    CudaPrecision precision = CudaPrecision::f32;
    ConvAlgorithm algorithm = ConvAlgorithm::automatic;
    float slope = static_cast<float>(kLeakySlope);  // of the LeakyReLU that is fused
    bool nondeterministic = false;                  // let engines in that do not repeat bit for bit, and sums in any order
    size_t workspace_limit = size_t{512} << 20;
};

// What a graph reads and writes. A role names the same tensor in every pass: x is [N, H, W, C] of the input or its gradient ... The last
// three: w as Ops::turn_weights and Ops::tile_weights make it, for engines that want it so (WeightForm).
enum class ConvRole {
    x,
    w,
    y,
    bias,
    residual,
    scale,
    shift,
    norm_input,
    centre,
    sum,
    sum_of_products,
    accumulated_w,
    turned_w,
    tiled_w,
    turned_tiled_w
};
inline constexpr size_t kConvRoles = 15;
const char* role_name(ConvRole role);  // "norm input" ...

// How an engine reads its weights. All but the plain form are made beside it whenever weights change. Tiles: kernels/weight_tiles.h.
enum class WeightForm { plain, turned, tiled, turned_tiled };
inline constexpr std::array kWeightForms = {WeightForm::plain, WeightForm::turned, WeightForm::tiled, WeightForm::turned_tiled};
ConvRole role_of(WeightForm form);
// to, from: the shape's weights; to is of the activation type.
void write_weights(Ops& ops, WeightForm form, Array to, Array from, const ConvShape& shape);

struct ConvOperand {
    ConvRole role = ConvRole::x;
    std::array<int64_t, 4> dims{};  // N, C, H, W (w: O, I, H, W); channels lie side by side in memory
    DType type = DType::f32;
};

// The operands that the problem asks for, in the order of roles.
std::vector<ConvOperand> operands_of(const ConvProblem& problem);

// Addresses by role, each a multiple of kConvAlignment; those that a problem does not use are null.
struct ConvPointers {
    std::array<void*, kConvRoles> data{};
    void*& operator[](ConvRole role) { return data[static_cast<size_t>(role)]; }
    void* operator[](ConvRole role) const { return data[static_cast<size_t>(role)]; }
    void give_sums(const Array& sums);  // [2, C]
};
ConvPointers pointers_to(void* x, const void* w, void* y);
inline constexpr size_t kConvAlignment = 16;
// Throws std::runtime_error where an operand of the problem is null or not aligned; form: of the weights that are read.
void check_addresses(const ConvProblem& problem, const ConvPointers& pointers, WeightForm form);

}  // namespace jem
