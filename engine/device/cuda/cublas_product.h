// Products of matrices by cuBLASLt, f32.
#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/device/cuda/gpu.h"

namespace jem {

// cuBLASLt's handle, of the current GPU.
class CublasHandle {
public:
    CublasHandle();
    cublasLtHandle_t get() const { return handle_.get(); }

private:
    struct Destroy {
        void operator()(cublasLtContext* handle) const;
    };
    std::unique_ptr<cublasLtContext, Destroy> handle_;
};

// c = op(a) op(b) (+ bias a row, or + c); matrices in columns, as cuBLASLt has them: what is [rows, columns] in columns is
// [columns, rows] in C++. `count` of each: so many products, of matrices that lie one behind the other.
class CublasProduct {
public:
    struct Operand {
        int64_t rows, columns;  // as it lies in memory
        bool transposed = false;
        uint32_t alignment = 16;  // bytes that its address is sure to be a multiple of
    };
    enum class Behind { nothing, bias, accumulation };
    struct Form {
        CudaPrecision precision = CudaPrecision::f32;
        Operand a, b, c;
        Behind behind = Behind::nothing;
        int count = 1;
    };

    // rank: of the heuristics' list, the first one first. Null where it is shorter, or empty.
    static std::unique_ptr<CublasProduct> make(cublasLtHandle_t handle, const Form& form, size_t workspace_limit, int rank = 0);
    ~CublasProduct();

    size_t workspace_bytes() const { return workspace_bytes_; }
    std::string name() const;  // of the algorithm and all that it is set to, for this version of cuBLASLt
    void run(cudaStream_t stream, void* c, const void* a, const void* b, const void* bias, std::byte* workspace) const;

private:
    CublasProduct(cublasLtHandle_t handle, const Form& form);
    bool choose(const Form& form, size_t workspace_limit, int rank);

    struct Descriptions;
    cublasLtHandle_t handle_;
    float beta_;
    std::unique_ptr<Descriptions> descriptions_;
    cublasLtMatmulAlgo_t algorithm_{};
    size_t workspace_bytes_ = 0;
};

size_t cublas_version();

}  // namespace jem
