// Products of many small matrices at once, by whoever offers them: a library, or loops in tests.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace jem {

// c = a b for each of `count`, f32, row by row: a [count, rows, depth], b [count, depth, columns], or, transposed, [count, columns, depth],
// c [count, rows, columns].
struct BatchedProductShape {
    int64_t count = 0, rows = 0, depth = 0, columns = 0;
    bool transposed = false;
};

class BatchedProduct {
public:
    virtual ~BatchedProduct() = default;
    virtual std::string name() const = 0;  // the same for the same way to compute it, and for no other
    virtual size_t workspace_bytes() const = 0;
    // Queues it; allocates nothing. Throws std::runtime_error.
    virtual void run(cudaStream_t stream, float* c, const float* a, const float* b, std::byte* workspace) const = 0;
};

// rank: of the ways to compute it, the one that is thought the fastest first; null where there are no more. Several threads ask at once.
struct BatchedProducts {
    std::string version;  // "cublasLt 130100"
    std::function<std::unique_ptr<BatchedProduct>(const BatchedProductShape& shape, size_t rank)> make;
};

// By cuBLASLt, on the current GPU.
BatchedProducts cublas_products();

}  // namespace jem
