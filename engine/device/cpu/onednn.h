// The only file that knows oneDNN's creation API (2.x and 3.x): convolutions and matrix products as calls that are ready to run.
#pragma once

#include <cstddef>
#include <dnnl.hpp>
#include <memory>
#include <string>
#include <vector>

#include "engine/device/convolution.h"
#include "engine/device/host/host_stream.h"

namespace jem::onednn {

// A primitive with the layouts it wants and the scratch it needs.
struct Made {
    dnnl::primitive primitive;
    dnnl::memory::desc src, weights, dst;  // for the backward passes: of the gradients where there are such
    dnnl::memory::desc scratch;
    std::string engine;

    size_t scratch_bytes() const { return scratch.get_size(); }
    bool is_reference() const { return engine.starts_with("ref"); }  // plain loops, tens of times as slow as others
};

struct OnednnProblem {
    ConvShape shape;
    int64_t batch = 0;
    int64_t block = 16;         // of both activations, divides their channels; 0: channels last
    bool planar_input = false;  // x is [N, C, H, W], for few channels
    DType type = DType::f32;    // of both activations and the weights: f32 or bf16. Biases and weight gradients are f32.
    bool f32_gradient = false;  // backward to data: its result is f32 whatever the type
    bool accumulate = false;    // forward only: dst += conv
};

const dnnl::engine& cpu_engine();
int64_t preferred_block();  // 16 with AVX-512, else 8
std::string version();
std::string instruction_set();
// Whether this CPU multiplies bf16 itself (AVX512_BF16 or AMX). Without, oneDNN imitates it, slower than f32.
bool has_bf16();
bool has_amx();

std::shared_ptr<const Made> conv_forward(const OnednnProblem& problem);
std::shared_ptr<const Made> conv_backward_data(const OnednnProblem& problem);
std::shared_ptr<const Made> conv_backward_weights(const OnednnProblem& problem);
// [m, k] x [k, n] (+ bias [n]) -> [m, n], added to what is there if accumulate; strides in elements.
struct Matrix {
    int64_t rows, columns, row_stride, column_stride;
};
std::shared_ptr<const Made> matmul(const Matrix& a, const Matrix& b, bool bias, bool accumulate);
std::shared_ptr<const Made> reorder(const dnnl::memory::desc& from, const dnnl::memory::desc& to, bool accumulate);

dnnl::memory::desc weights_ohwi(const ConvShape& shape);  // f32 [O, H, W, I]

// A primitive bound to its memory; running it allocates nothing.
class Call {
public:
    struct Argument {
        int id;
        dnnl::memory::desc desc;
        const void* data;
    };
    Call(std::shared_ptr<const Made> made, const std::vector<Argument>& arguments);
    void run() const;

private:
    std::shared_ptr<const Made> made_;
    std::vector<dnnl::memory> memories_;
    std::vector<dnnl_exec_arg_t> arguments_;
};

// Of what lies one behind the other in a workspace.
constexpr size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

template <class... Calls>
void submit_calls(HostStream& stream, const char* label, Work work, Calls... calls) {
    stream.submit(label, work, [=] { (calls->run(), ...); });
}

}  // namespace jem::onednn
