#include <mutex>
#include <utility>

#include "engine/device/cuda/batched_product.h"
#include "engine/device/cuda/cublas_product.h"

namespace jem {
namespace {

class CublasProducts {
public:
    std::unique_ptr<BatchedProduct> make(const BatchedProductShape& s, size_t rank);

private:
    std::mutex mutex_;
    CublasHandle handle_;
};

class CublasBatch final : public BatchedProduct {
public:
    explicit CublasBatch(std::unique_ptr<CublasProduct> product) : product_(std::move(product)) {}

    std::string name() const override { return product_->name(); }
    size_t workspace_bytes() const override { return product_->workspace_bytes(); }
    void run(cudaStream_t stream, float* c, const float* a, const float* b, std::byte* workspace) const override {
        product_->run(stream, c, b, a, nullptr, workspace);
    }

private:
    std::unique_ptr<CublasProduct> product_;
};

// In columns every matrix is its transpose, and so the factors change places.
std::unique_ptr<BatchedProduct> CublasProducts::make(const BatchedProductShape& s, size_t rank) {
    constexpr size_t kWorkspace = size_t{32} << 20;
    const CublasProduct::Form form{
        .precision = CudaPrecision::f32,
        .a = {.rows = s.transposed ? s.depth : s.columns, .columns = s.transposed ? s.columns : s.depth, .transposed = s.transposed},
        .b = {.rows = s.depth, .columns = s.rows},
        .c = {.rows = s.columns, .columns = s.rows},
        .behind = CublasProduct::Behind::nothing,
        .count = static_cast<int>(s.count)};
    const std::lock_guard lock(mutex_);
    auto product = CublasProduct::make(handle_.get(), form, kWorkspace, static_cast<int>(rank));
    return product == nullptr ? nullptr : std::make_unique<CublasBatch>(std::move(product));
}

}  // namespace

BatchedProducts cublas_products() {
    const auto products = std::make_shared<CublasProducts>();
    return {.version = "cublasLt " + std::to_string(cublas_version()),
            .make = [products](const BatchedProductShape& shape, size_t rank) { return products->make(shape, rank); }};
}

}  // namespace jem
