// The network's head, as a device plans it.
#pragma once

#include <cstddef>
#include <string>

#include "kernels/tensor.h"

namespace jem {

// The linear head, y = x w^T + b; x R [N, in], w R [out, in], y R [N, out].
class LinearPlan {
public:
    virtual ~LinearPlan() = default;
    virtual size_t workspace_bytes() const = 0;
    virtual void forward(const Tensor& y, const Tensor& x, Array w, Array b, std::byte* workspace) = 0;
    virtual void backward_data(const Tensor& d_x, const Tensor& d_y, Array w, std::byte* workspace) = 0;
    virtual void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte* workspace) = 0;  // accumulates
    virtual std::string engine() const { return ""; }  // for people; empty where there is nothing to say
};

}  // namespace jem
