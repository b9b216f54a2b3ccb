#include "engine/device/cuda/cublas_linear.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>

#include "engine/device/cuda/convolution/planned_call.h"
#include "engine/device/cuda/cuda_device.h"
#include "engine/device/out_of_memory.h"

namespace jem {
namespace {

// What NVIDIA advises as cuBLASLt's scratch, and what is planned for it where no GPU is at hand to ask.
constexpr size_t kWorkspaceHopper = size_t{32} << 20, kWorkspace = size_t{4} << 20;

// cuBLASLt, loaded when a GPU is used: linked, it would cost every start of the program, on the CPU too, 0.18 s and 210 MB.
class CublasLt {
public:
    static const CublasLt& get() {
        static const CublasLt library;
        return library;
    }
#define JEM_CUBLASLT(member, function) decltype(&::function) member = load<decltype(&::function)>(#function)
    JEM_CUBLASLT(create, cublasLtCreate);
    JEM_CUBLASLT(destroy, cublasLtDestroy);
    JEM_CUBLASLT(status_text, cublasLtGetStatusString);
    JEM_CUBLASLT(create_product, cublasLtMatmulDescCreate);
    JEM_CUBLASLT(destroy_product, cublasLtMatmulDescDestroy);
    JEM_CUBLASLT(set_product, cublasLtMatmulDescSetAttribute);
    JEM_CUBLASLT(create_matrix, cublasLtMatrixLayoutCreate);
    JEM_CUBLASLT(destroy_matrix, cublasLtMatrixLayoutDestroy);
    JEM_CUBLASLT(create_preference, cublasLtMatmulPreferenceCreate);
    JEM_CUBLASLT(destroy_preference, cublasLtMatmulPreferenceDestroy);
    JEM_CUBLASLT(set_preference, cublasLtMatmulPreferenceSetAttribute);
    JEM_CUBLASLT(heuristic, cublasLtMatmulAlgoGetHeuristic);
    JEM_CUBLASLT(multiply, cublasLtMatmul);
#undef JEM_CUBLASLT

private:
    template <class F>
    static F load(const char* function) {
        static void* const library = [] {
            const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
            void* const loaded = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
            if (loaded == nullptr)
                throw CudaUnavailable(name + " cannot be loaded (" + dlerror() +
                                      "). Install CUDA's libraries, name their folder in LD_LIBRARY_PATH, or run with --device cpu.");
            return loaded;
        }();
        void* const found = dlsym(library, function);
        if (found == nullptr) throw CudaUnavailable(std::string("cuBLASLt has no ") + function + " (it is too old). Install a newer CUDA.");
        return reinterpret_cast<F>(found);
    }
};

void check(cublasStatus_t status, const char* what) {
    if (status == CUBLAS_STATUS_ALLOC_FAILED) throw OutOfMemory(std::string("cuBLASLt could not ") + what);
    if (status != CUBLAS_STATUS_SUCCESS)
        throw std::runtime_error(std::string("cuBLASLt could not ") + what + " (" + CublasLt::get().status_text(status) +
                                 "). If the cause may be an earlier operation, run again with CUDA_LAUNCH_BLOCKING=1.");
}

template <auto Destroy>
struct Destroyer {
    template <class T>
    void operator()(T* p) const {
        (CublasLt::get().*Destroy)(p);
    }
};
using LtHandle = std::unique_ptr<cublasLtContext, Destroyer<&CublasLt::destroy>>;
using LtProduct = std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroyer<&CublasLt::destroy_product>>;
using LtMatrix = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroyer<&CublasLt::destroy_matrix>>;
using LtPreference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroyer<&CublasLt::destroy_preference>>;

// c = op(a) op(b) (+ bias a row, or + c); matrices in columns, as cuBLASLt has them: what is [rows, columns] in columns is
// [columns, rows] in C++.
class Product {
public:
    struct Operand {
        int64_t rows, columns;  // as it lies in memory
        bool transposed = false;
        uint32_t alignment = 16;  // bytes that its address is sure to be a multiple of
    };
    enum class Behind { nothing, bias, accumulation };

    Product(cublasLtHandle_t handle, CudaPrecision precision, Operand a, Operand b, Operand c, Behind behind, size_t workspace_limit)
        : handle_(handle), beta_(behind == Behind::accumulation ? 1.0f : 0.0f) {
        cublasLtMatmulDesc_t product = nullptr;
        check(lt_.create_product(&product, precision == CudaPrecision::f32 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_FAST_TF32, CUDA_R_32F),
              "describe a product");
        product_.reset(product);
        const auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
            check(lt_.set_product(product, attribute, &value, sizeof value), "describe a product");
        };
        set(CUBLASLT_MATMUL_DESC_TRANSA, a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
        set(CUBLASLT_MATMUL_DESC_TRANSB, b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
        if (behind == Behind::bias) {
            set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
            // Nobody reads it here, but the choice may look at its alignment: a slice's, the real address comes with each call.
            set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, reinterpret_cast<const void*>((uintptr_t{1} << 20) + sizeof(float)));
        }
        a_ = matrix(a);
        b_ = matrix(b);
        c_ = matrix(c);

        cublasLtMatmulPreference_t preference = nullptr;
        check(lt_.create_preference(&preference), "describe a preference");
        const LtPreference owned(preference);
        const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
            check(lt_.set_preference(preference, attribute, &value, sizeof value), "describe a preference");
        };
        prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_limit});
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a.alignment);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b.alignment);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c.alignment);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c.alignment);
        cublasLtMatmulHeuristicResult_t result{};
        int found = 0;
        const cublasStatus_t status =
            lt_.heuristic(handle, product, a_.get(), b_.get(), c_.get(), c_.get(), preference, 1, &result, &found);
        if (status == CUBLAS_STATUS_SUCCESS && found == 0) check(CUBLAS_STATUS_NOT_SUPPORTED, "find an algorithm for the linear layer");
        check(status, "find an algorithm for the linear layer");
        algorithm_ = result.algo;
        workspace_bytes_ = result.workspaceSize;
    }

    size_t workspace_bytes() const { return workspace_bytes_; }

    void run(cudaStream_t stream, void* c, const void* a, const void* b, const void* bias, std::byte* workspace) const {
        // The description is read when the product is queued: a recorded product keeps the address it had then.
        if (bias != nullptr) check(lt_.set_product(product_.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias), "set the bias");
        const float one = 1;
        check(lt_.multiply(handle_, product_.get(), &one, a, a_.get(), b, b_.get(), &beta_, c, c_.get(), c, c_.get(), &algorithm_,
                           workspace, workspace_bytes_, stream),
              "queue a product");
    }

private:
    LtMatrix matrix(const Operand& o) const {
        cublasLtMatrixLayout_t layout = nullptr;
        check(lt_.create_matrix(&layout, CUDA_R_32F, static_cast<uint64_t>(o.rows), static_cast<uint64_t>(o.columns), o.rows),
              "describe a matrix");
        return LtMatrix(layout);
    }

    const CublasLt& lt_ = CublasLt::get();
    cublasLtHandle_t handle_;
    float beta_;
    LtProduct product_;
    LtMatrix a_, b_, c_;
    cublasLtMatmulAlgo_t algorithm_{};
    size_t workspace_bytes_ = 0;
};

class CublasLinearPlan final : public LinearPlan {
public:
    // handle: null where no GPU is at hand.
    CublasLinearPlan(CudaLauncher& launcher, cublasLtHandle_t handle, CudaPrecision p, size_t limit, int64_t in, int64_t out,
                     const std::vector<int64_t>& batches)
        : launcher_(launcher), on_device_(handle != nullptr), in_(in), out_(out) {
        if (handle == nullptr) workspace_bytes_ = limit;
        // Weights and their gradient are slices of flat arrays: aligned to their type only.
        constexpr uint32_t kSlice = sizeof(float);
        for (const int64_t n : batches) {
            Variant v;
            v.batch = n;
            if (handle != nullptr) {
                using Behind = Product::Behind;
                v.forward = std::make_unique<Product>(handle, p, Product::Operand{in, out, true, kSlice}, Product::Operand{in, n},
                                                      Product::Operand{out, n}, Behind::bias, limit);
                v.backward_data = std::make_unique<Product>(handle, p, Product::Operand{in, out, false, kSlice}, Product::Operand{out, n},
                                                            Product::Operand{in, n}, Behind::nothing, limit);
                v.backward_weights = std::make_unique<Product>(handle, p, Product::Operand{in, n}, Product::Operand{out, n, true},
                                                               Product::Operand{in, out, false, kSlice}, Behind::accumulation, limit);
                for (const Product* product : {v.forward.get(), v.backward_data.get(), v.backward_weights.get()})
                    workspace_bytes_ = std::max(workspace_bytes_, aligned(product->workspace_bytes()));
            }
            variants_.push_back(std::move(v));
        }
    }

    size_t workspace_bytes() const override { return workspace_bytes_; }
    std::string engine() const override { return on_device_ ? "cublasLt, its heuristics' first" : "cublasLt: heuristics need a device"; }

    void forward(const Tensor& y, const Tensor& x, Array w, Array b, std::byte* workspace) override {
        const Variant& v = variant(x.n);
        check_operands(v, x, y, w);
        expect(b.count == out_ && b.type == DType::f32, "another bias");
        launch_product("linear_forward", v, [&] { v.forward->run(stream(), y.data, w.data, x.data, b.data, workspace); });
    }
    void backward_data(const Tensor& d_x, const Tensor& d_y, Array w, std::byte* workspace) override {
        const Variant& v = variant(d_y.n);
        check_operands(v, d_x, d_y, w);
        launch_product("linear_backward_data", v, [&] { v.backward_data->run(stream(), d_x.data, w.data, d_y.data, nullptr, workspace); });
    }
    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte* workspace) override {
        const Variant& v = variant(x.n);
        check_operands(v, x, d_y, d_w);
        launch_product("linear_backward_weights", v,
                       [&] { v.backward_weights->run(stream(), d_w.data, x.data, d_y.data, nullptr, workspace); });
    }

private:
    struct Variant {
        int64_t batch = 0;
        std::unique_ptr<Product> forward, backward_data, backward_weights;
    };

    cudaStream_t stream() const { return launcher_.stream(); }
    const Variant& variant(int64_t batch) const {
        for (const Variant& v : variants_)
            if (v.batch == batch) return v;
        throw std::logic_error("A linear layer of batch " + std::to_string(batch) + " was not planned.");
    }
    void check_operands(const Variant& v, const Tensor& x, const Tensor& y, const Array& w) const {
        expect_tensor(x, "input", {v.batch, in_, 1, 1}, DType::f32);
        expect_tensor(y, "output", {v.batch, out_, 1, 1}, DType::f32);
        expect(w.count == in_ * out_ && w.type == DType::f32, "other weights");
    }
    template <class Run>
    void launch_product(const char* label, const Variant& v, Run run) {
        const double elements = static_cast<double>(v.batch * (in_ + out_) + in_ * out_);
        const double flops = 2.0 * static_cast<double>(v.batch) * static_cast<double>(in_) * static_cast<double>(out_);
        launch(launcher_, label, {.bytes = elements * sizeof(float), .flops = flops}, run);
    }

    CudaLauncher& launcher_;
    bool on_device_;
    int64_t in_, out_;
    std::vector<Variant> variants_;
    size_t workspace_bytes_ = 0;
};

}  // namespace

struct CublasLinear::Impl {
    CudaLauncher& launcher;
    CudaPrecision precision;
    size_t workspace_limit;
    LtHandle handle = {};
};

CublasLinear::CublasLinear(CudaLauncher& launcher, const GpuDescription& gpu, CudaPrecision precision, bool on_device)
    : impl_(new Impl{launcher, precision, gpu.sm >= 90 ? kWorkspaceHopper : kWorkspace}) {
    if (!on_device) return;
    cublasLtHandle_t handle = nullptr;
    check(CublasLt::get().create(&handle), "start");
    impl_->handle.reset(handle);
}

CublasLinear::~CublasLinear() = default;

std::unique_ptr<LinearPlan> CublasLinear::plan(int64_t in, int64_t out, const std::vector<int64_t>& batches) {
    return std::make_unique<CublasLinearPlan>(impl_->launcher, impl_->handle.get(), impl_->precision, impl_->workspace_limit, in, out,
                                              batches);
}

}  // namespace jem
