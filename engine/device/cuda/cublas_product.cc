#include "engine/device/cuda/cublas_product.h"

#include <dlfcn.h>

#include <stdexcept>
#include <vector>

#include "engine/device/cuda/cuda_device.h"
#include "engine/device/out_of_memory.h"

namespace jem {
namespace {

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
    JEM_CUBLASLT(set_matrix, cublasLtMatrixLayoutSetAttribute);
    JEM_CUBLASLT(destroy_matrix, cublasLtMatrixLayoutDestroy);
    JEM_CUBLASLT(create_preference, cublasLtMatmulPreferenceCreate);
    JEM_CUBLASLT(destroy_preference, cublasLtMatmulPreferenceDestroy);
    JEM_CUBLASLT(set_preference, cublasLtMatmulPreferenceSetAttribute);
    JEM_CUBLASLT(heuristic, cublasLtMatmulAlgoGetHeuristic);
    JEM_CUBLASLT(version, cublasLtGetVersion);
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
using LtProduct = std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroyer<&CublasLt::destroy_product>>;
using LtMatrix = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroyer<&CublasLt::destroy_matrix>>;
using LtPreference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroyer<&CublasLt::destroy_preference>>;

LtMatrix matrix(const CublasProduct::Operand& o, int count) {
    const CublasLt& lt = CublasLt::get();
    cublasLtMatrixLayout_t layout = nullptr;
    check(lt.create_matrix(&layout, CUDA_R_32F, static_cast<uint64_t>(o.rows), static_cast<uint64_t>(o.columns), o.rows),
          "describe a matrix");
    LtMatrix owned(layout);
    if (count > 1) {
        const int64_t stride = o.rows * o.columns;
        check(lt.set_matrix(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count), "describe matrices");
        check(lt.set_matrix(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride), "describe matrices");
    }
    return owned;
}

}  // namespace

void CublasHandle::Destroy::operator()(cublasLtContext* handle) const { CublasLt::get().destroy(handle); }
CublasHandle::CublasHandle() {
    cublasLtHandle_t handle = nullptr;
    check(CublasLt::get().create(&handle), "start");
    handle_.reset(handle);
}

size_t cublas_version() { return CublasLt::get().version(); }

struct CublasProduct::Descriptions {
    LtProduct product;
    LtMatrix a, b, c;
};

std::unique_ptr<CublasProduct> CublasProduct::make(cublasLtHandle_t handle, const Form& form, size_t workspace_limit, int rank) {
    std::unique_ptr<CublasProduct> made(new CublasProduct(handle, form));
    return made->choose(form, workspace_limit, rank) ? std::move(made) : nullptr;
}

CublasProduct::CublasProduct(cublasLtHandle_t handle, const Form& form)
    : handle_(handle), beta_(form.behind == Behind::accumulation ? 1.0f : 0.0f), descriptions_(std::make_unique<Descriptions>()) {
    const CublasLt& lt = CublasLt::get();
    cublasLtMatmulDesc_t product = nullptr;
    check(lt.create_product(&product, form.precision == CudaPrecision::f32 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_FAST_TF32, CUDA_R_32F),
          "describe a product");
    descriptions_->product.reset(product);
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
        check(lt.set_product(product, attribute, &value, sizeof value), "describe a product");
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, form.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, form.b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (form.behind == Behind::bias) {
        set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
        // Nobody reads it here, but the choice may look at its alignment: a slice's, the real address comes with each call.
        set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, reinterpret_cast<const void*>((uintptr_t{1} << 20) + sizeof(float)));
    }
    descriptions_->a = matrix(form.a, form.count);
    descriptions_->b = matrix(form.b, form.count);
    descriptions_->c = matrix(form.c, form.count);
}
CublasProduct::~CublasProduct() = default;

bool CublasProduct::choose(const Form& form, size_t workspace_limit, int rank) {
    const CublasLt& lt = CublasLt::get();
    const Descriptions& d = *descriptions_;
    cublasLtMatmulPreference_t preference = nullptr;
    check(lt.create_preference(&preference), "describe a preference");
    const LtPreference owned(preference);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
        check(lt.set_preference(preference, attribute, &value, sizeof value), "describe a preference");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_limit});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, form.a.alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, form.b.alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, form.c.alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, form.c.alignment);
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(rank) + 1);
    int found = 0;
    const cublasStatus_t status =
        lt.heuristic(handle_, d.product.get(), d.a.get(), d.b.get(), d.c.get(), d.c.get(), preference, rank + 1, results.data(), &found);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return false;
    check(status, "find an algorithm for a product");
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<size_t>(rank)];
    if (found <= rank || result.state != CUBLAS_STATUS_SUCCESS) return false;
    algorithm_ = result.algo;
    workspace_bytes_ = result.workspaceSize;
    return true;
}

// The library may be given the bytes of what it chose again: they are what it is.
std::string CublasProduct::name() const {
    uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
    for (const uint64_t word : algorithm_.data)
        for (int shift = 0; shift < 64; shift += 8) hash = (hash ^ (word >> shift & 0xff)) * 0x100000001b3u;
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (int shift = 60; shift >= 0; shift -= 4) text += kDigits[hash >> shift & 15];
    return "algorithm " + text;
}

void CublasProduct::run(cudaStream_t stream, void* c, const void* a, const void* b, const void* bias, std::byte* workspace) const {
    const CublasLt& lt = CublasLt::get();
    const Descriptions& d = *descriptions_;
    // The description is read when the product is queued: a recorded product keeps the address it had then.
    if (bias != nullptr) check(lt.set_product(d.product.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias), "set the bias");
    const float one = 1;
    check(lt.multiply(handle_, d.product.get(), &one, a, d.a.get(), b, d.b.get(), &beta_, c, d.c.get(), c, d.c.get(), &algorithm_,
                      workspace, workspace_bytes_, stream),
          "queue a product");
}

}  // namespace jem
