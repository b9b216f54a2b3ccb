// What cuDNN does with the same convolutions, by its backend API:
//
//   jem_probe_cudnn dgrad [--plan GPU.json]   the best time of backward to data against the same as a forward convolution with turned
//                                             weights, forward and weight gradient beside them (bf16)
//   jem_probe_cudnn fused [--plan GPU.json]   f16 graphs: [scale, bias, leaky 0.2] -> conv -> [sum, sum of squares]; backward to data ->
//                                             leaky' -> sums; the first again in front of the weight gradient
//
// --plan: without a GPU; plans everything for the one that the file describes, and runs nothing.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cudnn.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "tests/probe/tell.h"

static int failures = 0;
static std::string device_json;  // --plan
static cudnnHandle_t handle = nullptr;
static bool planning() { return !device_json.empty(); }

static void check(cudaError_t e, const char* what) {
    if (e == cudaSuccess) return;
    line("FAIL", "%s: %s", what, cudaGetErrorString(e));
    std::exit(1);
}
#define CUDA(call) check((call), #call)
static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
static std::string last_error() {
    char m[512] = {};
    cudnnGetLastErrorString(m, sizeof m);
    for (char& c : m)
        if (c == '\n') c = ' ';
    return m;
}

// The backend API -------------------------------------------------------------------------------------------------------------

using Descriptor = cudnnBackendDescriptor_t;
struct Refused {
    std::string why;
};
static Descriptor create(cudnnBackendDescriptorType_t type) {
    Descriptor d = nullptr;
    if (cudnnBackendCreateDescriptor(type, &d)) throw Refused{last_error()};
    return d;
}
static void set(Descriptor d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, const void* value) {
    if (cudnnBackendSetAttribute(d, name, type, count, value))
        throw Refused{"attribute " + std::to_string((int)name) + ": " + last_error()};
}
static void set(Descriptor d, cudnnBackendAttributeName_t name, Descriptor value) {
    set(d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}
static Descriptor finish(Descriptor d) {
    if (cudnnBackendFinalize(d)) throw Refused{last_error()};
    return d;
}
using Dims = std::vector<int64_t>;
struct Tensor {
    Descriptor descriptor = nullptr;
    int64_t id = 0;
    Dims dims;
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
};
constexpr int kSets = 3;  // buffers taken in turn
struct Graph {
    std::vector<Descriptor> operations;
    std::vector<int64_t> ids;
    std::vector<void*> pointers[kSets];
    int64_t next = 1;

    // pointers: one per set (or one for all); none: a virtual tensor. dims: N, C, H, W; memory is NHWC (K, R, S, C for weights).
    Tensor tensor(const Dims& dims, cudnnDataType_t type, const std::vector<void*>& where) {
        Tensor t{create(CUDNN_BACKEND_TENSOR_DESCRIPTOR), next++, dims, type};
        const Dims strides{dims[1] * dims[2] * dims[3], 1, dims[1] * dims[3], dims[1]};
        const int64_t alignment = 16;
        const bool is_virtual = where.empty();
        set(t.descriptor, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &t.id);
        set(t.descriptor, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
        set(t.descriptor, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
        set(t.descriptor, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims.data());
        set(t.descriptor, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.data());
        set(t.descriptor, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
        finish(t.descriptor);
        if (!is_virtual) {
            ids.push_back(t.id);
            for (int i = 0; i < kSets; ++i) pointers[i].push_back(where[(size_t)i % where.size()]);
        }
        return t;
    }
    static Descriptor convolution() {
        const Descriptor d = create(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
        const int64_t spatial = 2, one[2] = {1, 1};
        const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
        const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
        set(d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &spatial);
        set(d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
        set(d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
        for (const auto a : {CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_ATTR_CONVOLUTION_DILATIONS,
                             CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES})
            set(d, a, CUDNN_TYPE_INT64, 2, one);
        return finish(d);
    }
    void convolve(cudnnBackendDescriptorType_t type, const cudnnBackendAttributeName_t (&names)[6], const Tensor& x, const Tensor& w,
                  const Tensor& y) {
        const Descriptor d = create(type);
        const float alpha = 1, beta = 0;
        set(d, names[0], x.descriptor), set(d, names[1], w.descriptor), set(d, names[2], y.descriptor), set(d, names[3], convolution());
        set(d, names[4], CUDNN_TYPE_FLOAT, 1, &alpha), set(d, names[5], CUDNN_TYPE_FLOAT, 1, &beta);
        operations.push_back(finish(d));
    }
    void forward(const Tensor& x, const Tensor& w, const Tensor& y) {
        convolve(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                 {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
                 x, w, y);
    }
    void backward_data(const Tensor& dx, const Tensor& w, const Tensor& dy) {
        convolve(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                 {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
                 dx, w, dy);
    }
    void backward_weights(const Tensor& x, const Tensor& dw, const Tensor& dy) {
        convolve(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                 {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA},
                 x, dw, dy);
    }
    // y = mode(a, b); b.descriptor may be null. For RELU_BWD a is the gradient and b the activation's input.
    void pointwise(cudnnPointwiseMode_t mode, const Tensor& a, const Tensor& b, const Tensor& y, double slope = 0) {
        const Descriptor p = create(CUDNN_BACKEND_POINTWISE_DESCRIPTOR), d = create(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
        const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
        const bool backward = mode == CUDNN_POINTWISE_RELU_BWD;
        set(p, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
        set(p, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &compute);
        if (backward || mode == CUDNN_POINTWISE_RELU_FWD) {
            const cudnnNanPropagation_t nan = CUDNN_PROPAGATE_NAN;
            const double low = 0, high = std::numeric_limits<float>::max();
            set(p, CUDNN_ATTR_POINTWISE_NAN_PROPAGATION, CUDNN_TYPE_NAN_PROPOGATION, 1, &nan);
            set(p, CUDNN_ATTR_POINTWISE_RELU_LOWER_CLIP, CUDNN_TYPE_DOUBLE, 1, &low);
            set(p, CUDNN_ATTR_POINTWISE_RELU_UPPER_CLIP, CUDNN_TYPE_DOUBLE, 1, &high);
            set(p, CUDNN_ATTR_POINTWISE_RELU_LOWER_CLIP_SLOPE, CUDNN_TYPE_DOUBLE, 1, &slope);
        }
        const float one = 1;
        set(d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, finish(p));
        set(d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, backward ? b.descriptor : a.descriptor);
        if (backward)
            set(d, CUDNN_ATTR_OPERATION_POINTWISE_DYDESC, a.descriptor), set(d, CUDNN_ATTR_OPERATION_POINTWISE_DXDESC, y.descriptor);
        else
            set(d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y.descriptor);
        if (!backward && b.descriptor) set(d, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b.descriptor);
        set(d, CUDNN_ATTR_OPERATION_POINTWISE_ALPHA1, CUDNN_TYPE_FLOAT, 1, &one);
        set(d, CUDNN_ATTR_OPERATION_POINTWISE_ALPHA2, CUDNN_TYPE_FLOAT, 1, &one);
        operations.push_back(finish(d));
    }
    Tensor then(cudnnPointwiseMode_t mode, const Tensor& a, const Tensor& b, cudnnDataType_t type, double slope = 0) {
        const Tensor y = tensor(a.dims, type, {});
        pointwise(mode, a, b, y, slope);
        return y;
    }
    void sum(const Tensor& x, const Tensor& y) {
        const Descriptor r = create(CUDNN_BACKEND_REDUCTION_DESCRIPTOR), d = create(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
        const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
        const cudnnReduceTensorOp_t add = CUDNN_REDUCE_TENSOR_ADD;
        set(r, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
        set(r, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &add);
        set(d, CUDNN_ATTR_OPERATION_REDUCTION_DESC, finish(r));
        set(d, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x.descriptor);
        set(d, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y.descriptor);
        operations.push_back(finish(d));
    }
    void statistics(const Tensor& x, const Tensor& sum, const Tensor& squares) {
        const Descriptor d = create(CUDNN_BACKEND_OPERATION_GEN_STATS_DESCRIPTOR);
        const cudnnGenStatsMode_t mode = CUDNN_GENSTATS_SUM_SQSUM;
        set(d, CUDNN_ATTR_OPERATION_GENSTATS_XDESC, x.descriptor);
        set(d, CUDNN_ATTR_OPERATION_GENSTATS_MODE, CUDNN_TYPE_GENSTATS_MODE, 1, &mode);
        set(d, CUDNN_ATTR_OPERATION_GENSTATS_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &x.type);
        set(d, CUDNN_ATTR_OPERATION_GENSTATS_SUMDESC, sum.descriptor);
        set(d, CUDNN_ATTR_OPERATION_GENSTATS_SQSUMDESC, squares.descriptor);
        operations.push_back(finish(d));
    }
    void norm_weights(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& inverse, const Tensor& scale,
                      const Tensor (&out)[5]) {
        const Descriptor d = create(CUDNN_BACKEND_OPERATION_BN_BWD_WEIGHTS_DESCRIPTOR);
        const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
        set(d, CUDNN_ATTR_OPERATION_BN_BWD_WEIGHTS_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &compute);
        set(d, CUDNN_ATTR_OPERATION_BN_BWD_WEIGHTS_X_DESC, x.descriptor);
        set(d, CUDNN_ATTR_OPERATION_BN_BWD_WEIGHTS_DY_DESC, dy.descriptor);
        set(d, CUDNN_ATTR_OPERATION_BN_BWD_WEIGHTS_MEAN_DESC, mean.descriptor);
        set(d, CUDNN_ATTR_OPERATION_BN_BWD_WEIGHTS_INVSTD_DESC, inverse.descriptor);
        set(d, CUDNN_ATTR_OPERATION_BN_BWD_WEIGHTS_BN_SCALE_DESC, scale.descriptor);
        const cudnnBackendAttributeName_t names[] = {
            CUDNN_ATTR_OPERATION_BN_BWD_WEIGHTS_DBN_SCALE_DESC, CUDNN_ATTR_OPERATION_BN_BWD_WEIGHTS_DBN_BIAS_DESC,
            CUDNN_ATTR_OPERATION_BN_BWD_WEIGHTS_EQ_DY_SCALE_DESC, CUDNN_ATTR_OPERATION_BN_BWD_WEIGHTS_EQ_X_SCALE_DESC,
            CUDNN_ATTR_OPERATION_BN_BWD_WEIGHTS_EQ_BIAS};
        for (int i = 0; i < 5; ++i) set(d, names[i], out[i].descriptor);
        operations.push_back(finish(d));
    }
};
struct Plan {
    Descriptor plan = nullptr, packs[kSets] = {};
    int64_t engine = -1, workspace = 0;
    int place = 0;  // in the list
    bool run(int i) const { return cudnnBackendExecute(handle, plan, packs[i % kSets]) == CUDNN_STATUS_SUCCESS; }
};
constexpr int64_t kWorkspace = 1024ll << 20;
static void* workspace() {
    static void* p = nullptr;
    if (!p) CUDA(cudaMalloc(&p, kWorkspace));
    return p;
}
static float time_batch(const std::function<bool(int)>& launch, int count, int& n) {
    static cudaEvent_t from = nullptr, to = nullptr;
    if (!from) CUDA(cudaEventCreate(&from)), CUDA(cudaEventCreate(&to));
    CUDA(cudaEventRecord(from));
    for (int i = 0; i < count; ++i)
        if (!launch(n++)) return 1e9f;
    CUDA(cudaEventRecord(to));
    CUDA(cudaEventSynchronize(to));
    float ms = 0;
    CUDA(cudaEventElapsedTime(&ms, from, to));
    return ms / (float)count;
}
static double time_ms(
    const std::function<bool(int)>& launch) {  // as in probe.cu: median of 7 batches of about 15 ms, after 10 ms of warming up
    int n = 0;
    time_batch(launch, 3, n);
    const int count = std::clamp((int)(15 / std::max(time_batch(launch, 6, n), 1e-3f)), 3, 3000);
    time_batch(launch, std::max(count * 2 / 3, 3), n);
    std::vector<float> v;
    for (int i = 0; i < 7; ++i) v.push_back(time_batch(launch, count, n));
    std::sort(v.begin(), v.end());
    return v[3];
}
struct Best {
    bool ok = false;
    Plan plan;
    double ms = 0;
    int tried = 0, listed = 0, nondeterministic = 0;
    std::string why;
};
// The fastest deterministic plan of heuristics A and fallback; `seconds` bounds how long to go on (some are compiled at run time, seconds
// each).
static Best find_best(const Graph& g, double seconds) {
    Best best;
    try {
        const Descriptor graph = create(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
        set(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, (int64_t)g.operations.size(), g.operations.data());
        Descriptor properties = nullptr;
        if (planning()) {
            properties = create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
            set(properties, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)device_json.size(), device_json.data());
            finish(properties);
        } else {
            set(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
        }
        finish(graph);
        std::vector<Descriptor> configs;
        for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
            const Descriptor h = create(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
            set(h, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
            set(h, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
            if (properties) set(h, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, properties);
            if (cudnnBackendFinalize(h)) {
                best.why = last_error();
                continue;
            }
            int64_t n = 0, got = 0;
            cudnnBackendGetAttribute(h, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &n, nullptr);
            std::vector<Descriptor> list;
            for (int64_t i = 0; i < n; ++i) list.push_back(create(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
            if (n) cudnnBackendGetAttribute(h, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, n, &got, list.data());
            configs.insert(configs.end(), list.begin(), list.begin() + got);
        }
        best.listed = (int)configs.size();
        if (configs.empty()) return best;
        const double start = now();
        for (int i = 0; i < best.listed && (best.tried == 0 || now() - start < seconds); ++i) {
            Plan p;
            p.place = i;
            int64_t n = 0;
            Descriptor engine = create(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
            cudnnBackendGetAttribute(configs[(size_t)i], CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine);
            cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &n, &p.engine);
            cudnnBackendNumericalNote_t notes[32];
            n = 0;
            cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, 32, &n, notes);
            if (std::find(notes, notes + n, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) != notes + n) {
                ++best.nondeterministic;
                continue;
            }
            p.plan = create(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
            if (!planning()) set(p.plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
            set(p.plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configs[(size_t)i]);
            if (cudnnBackendFinalize(p.plan)) {
                best.why = last_error();
                continue;
            }
            cudnnBackendGetAttribute(p.plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, &p.workspace);
            if (p.workspace > kWorkspace) continue;
            ++best.tried;
            if (planning()) {
                if (!best.ok) best.ok = true, best.plan = p;
                continue;
            }
            void* const scratch = workspace();
            for (int s = 0; s < kSets; ++s) {
                p.packs[s] = create(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
                set(p.packs[s], CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, (int64_t)g.ids.size(), g.ids.data());
                set(p.packs[s], CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, (int64_t)g.ids.size(), g.pointers[s].data());
                set(p.packs[s], CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &scratch);
                finish(p.packs[s]);
            }
            int k = 0;
            const auto launch = [&](int j) { return p.run(j); };
            const double first = time_batch(launch, 2, k);  // loads the kernels
            if (first > 1e8 || cudaDeviceSynchronize() != cudaSuccess) {
                best.why = "engine " + std::to_string(p.engine) + " did not run: " + last_error();
                if (cudaGetLastError() != cudaSuccess) throw Refused{best.why};
                continue;
            }
            double ms = time_batch(launch, 3, k);
            if (!best.ok || ms < 1.3 * best.ms)
                ms = std::min<double>(time_batch(launch, std::clamp((int)(3 / std::max(ms, 1e-3)), 3, 60), k),
                                      time_batch(launch, std::clamp((int)(3 / std::max(ms, 1e-3)), 3, 60), k));
            if (!best.ok || ms < best.ms) best.ok = true, best.plan = p, best.ms = ms;
        }
        if (best.ok && !planning()) best.ms = time_ms([&](int i) { return best.plan.run(i); });
    } catch (const Refused& r) {
        best.ok = false, best.why = r.why;
    }
    return best;
}
static Best build_and_find(const std::function<void(Graph&)>& make, double seconds) {
    Graph g;
    try {
        make(g);
    } catch (const Refused& r) {
        Best b;
        b.why = r.why;
        return b;
    }
    return find_best(g, seconds);
}

// Data ------------------------------------------------------------------------------------------------------------------------

static uint32_t mix(uint32_t x) {
    x ^= x >> 16, x *= 0x7feb352dU, x ^= x >> 15, x *= 0x846ca68bU;
    return x ^ x >> 16;
}
static float normal(uint32_t seed, uint32_t i) {
    const uint32_t a = mix(i * 2 + seed * 0x9e3779b9u), b = mix(a + 1);
    return ((float)(a & 0xffff) + (float)(a >> 16) + (float)(b & 0xffff) + (float)(b >> 16) - 131070.f) / 37837.f;
}
static uint16_t encode(float f, cudnnDataType_t t) {
    return t == CUDNN_DATA_HALF ? std::bit_cast<uint16_t>(__float2half(f)) : std::bit_cast<uint16_t>(__float2bfloat16(f));
}
static float decode(uint16_t v, cudnnDataType_t t) {
    return t == CUDNN_DATA_HALF ? __half2float(std::bit_cast<__half>(v)) : __bfloat162float(std::bit_cast<__nv_bfloat16>(v));
}
// A tensor in device memory, kSets copies with the same numbers; the numbers are also kept here. In planning mode only addresses.
struct Data {
    std::vector<float> host;
    std::vector<void*> device;
    cudnnDataType_t type;
    size_t count;
    Data(size_t n, cudnnDataType_t t, const std::function<float(uint32_t)>& value = nullptr) : type(t), count(n) {
        const size_t bytes = n * (t == CUDNN_DATA_FLOAT ? 4 : 2);
        for (int s = 0; s < kSets; ++s) {
            void* p = reinterpret_cast<void*>(uintptr_t{256});
            if (!planning()) CUDA(cudaMalloc(&p, bytes));
            device.push_back(p);
        }
        if (planning()) return;
        if (value) {
            host.resize(n);
            if (t == CUDNN_DATA_FLOAT) {
                for (size_t i = 0; i < n; ++i) host[i] = value((uint32_t)i);
                for (void* p : device) CUDA(cudaMemcpy(p, host.data(), bytes, cudaMemcpyHostToDevice));
            } else {
                std::vector<uint16_t> v(n);
                for (size_t i = 0; i < n; ++i) v[i] = encode(value((uint32_t)i), t), host[i] = decode(v[i], t);
                for (void* p : device) CUDA(cudaMemcpy(p, v.data(), bytes, cudaMemcpyHostToDevice));
            }
        } else {
            for (void* p : device) CUDA(cudaMemset(p, 0xff, bytes));
        }
    }
    Data(const Data&) = delete;
    Data& operator=(const Data&) = delete;
    ~Data() {
        if (!planning())
            for (void* p : device) cudaFree(p);
    }
    std::vector<float> get() const {
        std::vector<float> f(count);
        if (type == CUDNN_DATA_FLOAT) {
            CUDA(cudaMemcpy(f.data(), device[0], count * 4, cudaMemcpyDeviceToHost));
        } else {
            std::vector<uint16_t> v(count);
            CUDA(cudaMemcpy(v.data(), device[0], count * 2, cudaMemcpyDeviceToHost));
            for (size_t i = 0; i < count; ++i) f[i] = decode(v[i], type);
        }
        return f;
    }
};
// Square images.
struct Shape {
    int64_t n, h, c, k;
};
static double flops(const Shape& s) { return 2.0 * (double)(s.n * s.h * s.h * 9) * (double)(s.c * s.k); }
static std::string name(const Shape& s) {
    char b[64];
    std::snprintf(b, sizeof b, "[%d, %dx%d, %d->%d]", (int)s.n, (int)s.h, (int)s.h, (int)s.c, (int)s.k);
    return b;
}
static void report(const std::string& what, const Shape& s, const Best& b) {
    if (!b.ok) {
        line("info", "%-22s %-34s none of %d plans: %s", name(s).c_str(), what.c_str(), b.listed, b.why.c_str());
    } else if (planning()) {
        line("ok", "%-22s %-34s planned: engine %ld first, %d of %d plans, %d nondeterministic", name(s).c_str(), what.c_str(),
             (long)b.plan.engine, b.tried, b.listed, b.nondeterministic);
    } else {
        const double t = flops(s) / b.ms * 1e-9;
        line("time", "%-22s %-34s %.4f ms %4.0f TFLOP/s %5.1f %% of %.0f; engine %ld, no. %d of %d (%d tried), workspace %ld KiB",
             name(s).c_str(), what.c_str(), b.ms, t, t / kMatmul * 100, kMatmul, (long)b.plan.engine, b.plan.place + 1, b.listed, b.tried,
             (long)(b.plan.workspace >> 10));
    }
}
static void verdict(bool ok, const std::string& what, double worst) {
    failures += !ok;
    line(ok ? "ok" : "FAIL", "%s: worst difference %.2e of the values' size", what.c_str(), worst);
}
// Worst |a - b| against the root mean square of b.
static double worst_of(const std::vector<float>& a, const std::vector<float>& b) {
    double squares = 0, worst = 0;
    for (size_t i = 0; i < a.size(); ++i)
        squares += (double)b[i] * b[i], worst = std::max(worst, std::isfinite(a[i]) ? (double)std::fabs(a[i] - b[i]) : 1e30);
    return worst / (std::sqrt(squares / (double)std::max<size_t>(a.size(), 1)) + 1e-30);
}
// Some outputs of a forward convolution in double, corners included. w: [k][tap][c].
static void sample_forward(const Shape& s, const std::vector<float>& act, const std::vector<float>& w, const std::vector<float>& y,
                           std::vector<float>& got, std::vector<float>& want) {
    for (uint32_t i = 0; i < 1500; ++i) {
        const int64_t n = mix(i) % s.n, k = mix(i + 7777) % s.k,
                      py = i % 5 == 0   ? 0
                           : i % 5 == 1 ? s.h - 1
                                        : mix(i * 3 + 1) % s.h,
                      px = i % 7 == 0   ? 0
                           : i % 7 == 1 ? s.h - 1
                                        : mix(i * 5 + 2) % s.h;
        double sum = 0;
        for (int tap = 0; tap < 9; ++tap) {
            const int64_t yy = py + tap / 3 - 1, xx = px + tap % 3 - 1;
            if (yy < 0 || yy >= s.h || xx < 0 || xx >= s.h) continue;
            for (int64_t c = 0; c < s.c; ++c)
                sum += (double)act[(size_t)(((n * s.h + yy) * s.h + xx) * s.c + c)] * w[(size_t)((k * 9 + tap) * s.c + c)];
        }
        got.push_back(y[(size_t)(((n * s.h + py) * s.h + px) * s.k + k)]), want.push_back((float)sum);
    }
}
static std::vector<float> rotate(const Shape& s, const std::vector<float>& w) {  // [k][tap][c] -> [c][8 - tap][k]
    std::vector<float> r(w.size());
    for (int64_t k = 0; k < s.k; ++k)
        for (int64_t tap = 0; tap < 9; ++tap)
            for (int64_t c = 0; c < s.c; ++c) r[(size_t)((c * 9 + 8 - tap) * s.k + k)] = w[(size_t)((k * 9 + tap) * s.c + c)];
    return r;
}

// Steps -----------------------------------------------------------------------------------------------------------------------

static void step_dgrad() {
    for (const int64_t n : {64, 128})
        for (const Shape& s : {Shape{n, 32, 160, 160}, Shape{n, 16, 320, 320}, Shape{n, 8, 640, 640}, Shape{n, 16, 320, 640}}) {
            const cudnnDataType_t t = CUDNN_DATA_BFLOAT16;
            const size_t in = (size_t)(s.n * s.h * s.h * s.c), out = (size_t)(s.n * s.h * s.h * s.k), weights = (size_t)(9 * s.c * s.k);
            const float spread = 1 / std::sqrt(9.f * (float)s.k);
            Data x(in, t, [](uint32_t i) { return normal(1, i); }), dy(out, t, [](uint32_t i) { return normal(2, i); }),
                w(weights, t, [&](uint32_t i) { return normal(3, i) * spread; });
            std::vector<float> turned;
            if (!planning()) turned = rotate(s, w.host);
            Data rotated(weights, t, [&](uint32_t i) { return turned[i]; }), y(out, t), dx(in, t), dx2(in, t), dw(weights, t);
            const Dims xd{s.n, s.c, s.h, s.h}, yd{s.n, s.k, s.h, s.h}, wd{s.k, s.c, 3, 3}, rd{s.c, s.k, 3, 3};
            const Best forward = build_and_find(
                [&](Graph& g) { g.forward(g.tensor(xd, t, x.device), g.tensor(wd, t, w.device), g.tensor(yd, t, y.device)); }, 4);
            report("forward", s, forward);
            const Best back = build_and_find(
                [&](Graph& g) { g.backward_data(g.tensor(xd, t, dx.device), g.tensor(wd, t, w.device), g.tensor(yd, t, dy.device)); }, 4);
            report("dgrad", s, back);
            const Best as_forward = build_and_find(
                [&](Graph& g) { g.forward(g.tensor(yd, t, dy.device), g.tensor(rd, t, rotated.device), g.tensor(xd, t, dx2.device)); }, 4);
            report("dgrad as forward, rotated weights", s, as_forward);
            const Best weight = build_and_find(
                [&](Graph& g) { g.backward_weights(g.tensor(xd, t, x.device), g.tensor(wd, t, dw.device), g.tensor(yd, t, dy.device)); },
                4);
            report("weight gradient", s, weight);
            if (planning() || !back.ok || !as_forward.ok) continue;
            line("info", "%-22s rotated weights take %.3f of dgrad's time", name(s).c_str(), as_forward.ms / back.ms);
            const double worst = worst_of(dx2.get(), dx.get());
            verdict(worst < 0.05, name(s) + " dgrad and rotated forward agree", worst);
            std::vector<float> got, want;
            sample_forward({s.n, s.h, s.k, s.c}, dy.host, turned, dx2.get(), got, want);
            verdict(worst_of(got, want) < 0.03, name(s) + " rotated forward against 1500 outputs in double", worst_of(got, want));
        }
}
static float leaky(float z) { return z > 0 ? z : 0.2f * z; }
static void step_fused() {
    for (const Shape& s : {Shape{64, 32, 160, 160}, Shape{64, 16, 320, 320}, Shape{64, 8, 640, 640}, Shape{128, 32, 160, 160}}) {
        const cudnnDataType_t half = CUDNN_DATA_HALF, f32 = CUDNN_DATA_FLOAT;
        const int64_t c = s.c;
        const size_t count = (size_t)(s.n * s.h * s.h * c), weights = (size_t)(9 * c * c);
        const float spread = 1 / std::sqrt(9.f * (float)c);
        const auto xv = [](uint32_t i) { return normal(1, i); };
        const auto wv = [&](uint32_t i) { return normal(3, i) * spread; };
        const auto scale_value = [](uint32_t i) { return 1 + 0.1f * normal(5, i); };
        const auto bias_value = [](uint32_t i) { return 0.3f * normal(6, i); };
        const Dims xd{s.n, c, s.h, s.h}, wd{c, c, 3, 3}, cd{1, c, 1, 1};
        {
            const cudnnDataType_t t = CUDNN_DATA_BFLOAT16;
            Data x(count, t, xv), w(weights, t, wv), y(count, t);
            report("bf16 forward", s,
                   build_and_find(
                       [&](Graph& g) { g.forward(g.tensor(xd, t, x.device), g.tensor(wd, t, w.device), g.tensor(xd, t, y.device)); }, 3));
            report("bf16 dgrad", s,
                   build_and_find(
                       [&](Graph& g) { g.backward_data(g.tensor(xd, t, x.device), g.tensor(wd, t, w.device), g.tensor(xd, t, y.device)); },
                       3));
            report(
                "bf16 weight gradient", s,
                build_and_find(
                    [&](Graph& g) { g.backward_weights(g.tensor(xd, t, x.device), g.tensor(wd, t, w.device), g.tensor(xd, t, y.device)); },
                    3));
        }
        Data x(count, half, xv), dy(count, half, [](uint32_t i) { return normal(2, i); }), w(weights, half, wv), y(count, half),
            dx(count, half), dw(weights, half);
        Data scale(c, f32, scale_value), bias(c, f32, bias_value), scale16(c, half, scale_value), bias16(c, half, bias_value),
            mean(c, f32, [](uint32_t i) { return 0.2f * normal(7, i); }),
            inverse(c, f32, [](uint32_t i) { return 1 + 0.1f * std::fabs(normal(8, i)); });
        Data sum(c, f32), squares(c, f32), eq0(c, f32), eq1(c, f32), eq2(c, f32);
        report(
            "f16 forward", s,
            build_and_find(
                [&](Graph& g) { g.forward(g.tensor(xd, half, x.device), g.tensor(wd, half, w.device), g.tensor(xd, half, y.device)); }, 3));
        report("f16 dgrad", s,
               build_and_find(
                   [&](Graph& g) {
                       g.backward_data(g.tensor(xd, half, dx.device), g.tensor(wd, half, w.device), g.tensor(xd, half, dy.device));
                   },
                   3));
        report("f16 weight gradient", s,
               build_and_find(
                   [&](Graph& g) {
                       g.backward_weights(g.tensor(xd, half, x.device), g.tensor(wd, half, dw.device), g.tensor(xd, half, dy.device));
                   },
                   3));
        line("info",
             "%-22s passes over all elements, by bytes at 3.0 TB/s: norm+leaky %.4f ms, statistics %.4f ms, leaky backward %.4f ms, its "
             "sums %.4f ms",
             name(s).c_str(), (double)count * 4 / 3e9, (double)count * 2 / 3e9, (double)count * 6 / 3e9, (double)count * 4 / 3e9);

        // The precompiled engines want scale and bias in f16; those compiled at run time take f32.
        const auto activation = [&](Graph& g, const Tensor& in, bool narrow) {
            const Tensor sc = narrow ? g.tensor(cd, half, scale16.device) : g.tensor(cd, f32, scale.device),
                         bi = narrow ? g.tensor(cd, half, bias16.device) : g.tensor(cd, f32, bias.device);
            return g.then(CUDNN_POINTWISE_RELU_FWD, g.then(CUDNN_POINTWISE_ADD, g.then(CUDNN_POINTWISE_MUL, in, sc, half), bi, half), {},
                          half, 0.2);
        };
        std::vector<float> act(planning() ? 0 : count);
        const auto host_activation = [&](const Data& sc, const Data& bi) {
            for (size_t i = 0; i < act.size(); ++i)
                act[i] = decode(encode(leaky(x.host[i] * sc.host[i % (size_t)c] + bi.host[i % (size_t)c]), half), half);
        };
        const auto check_sums = [&](const std::string& what, const std::vector<float>& values,
                                    const std::function<double(double, size_t)>& second) {
            std::vector<double> a((size_t)c, 0), b((size_t)c, 0);
            double size_a = 1e-30, size_b = 1e-30, off = 0;
            for (size_t i = 0; i < values.size(); ++i)
                a[i % (size_t)c] += values[i], b[i % (size_t)c] += second(values[i], i), size_a += std::fabs(values[i]),
                    size_b += std::fabs(second(values[i], i));
            const auto ga = sum.get(), gb = squares.get();
            for (size_t i = 0; i < (size_t)c; ++i)
                off = std::max({off, std::fabs(ga[i] - a[i]) / (size_a / (double)c), std::fabs(gb[i] - b[i]) / (size_b / (double)c)});
            verdict(off < 2e-3, what + ": sums against its own output", std::isfinite(off) ? off : 1e30);
        };
        for (const bool narrow : {true, false}) {
            const std::string what = narrow ? "f16 norm leaky > forward > genstats" : "f16 the same, sums as reductions";
            const Best b = build_and_find(
                [&](Graph& g) {
                    const Tensor out = g.tensor(xd, half, y.device), one = g.tensor(cd, f32, sum.device),
                                 two = g.tensor(cd, f32, squares.device);
                    g.forward(activation(g, g.tensor(xd, half, x.device), narrow), g.tensor(wd, half, w.device), out);
                    if (narrow) return g.statistics(out, one, two);
                    g.sum(out, one);
                    g.sum(g.then(CUDNN_POINTWISE_MUL, out, out, f32), two);
                },
                narrow ? 4 : 8);
            report(what, s, b);
            if (!b.ok || planning()) continue;
            b.plan.run(0);
            CUDA(cudaDeviceSynchronize());
            narrow ? host_activation(scale16, bias16) : host_activation(scale, bias);
            std::vector<float> got, want;
            const auto out = y.get();
            sample_forward(s, act, w.host, out, got, want);
            verdict(worst_of(got, want) < 0.02, name(s) + " " + what, worst_of(got, want));
            check_sums(name(s) + " " + what, out, [](double v, size_t) { return v * v; });
        }
        for (const bool weights_too : {true, false}) {
            const std::string what = weights_too ? "f16 dgrad > leaky' > dBN weights" : "f16 dgrad > leaky' > two sums";
            const Best b = build_and_find(
                [&](Graph& g) {
                    const Tensor d = g.tensor(xd, half, {}), bnx = g.tensor(xd, half, x.device), m = g.tensor(cd, f32, mean.device),
                                 inv = g.tensor(cd, f32, inverse.device), sc = g.tensor(cd, f32, scale.device),
                                 bi = g.tensor(cd, f32, bias.device), dz = g.tensor(xd, half, dx.device),
                                 one = g.tensor(cd, f32, sum.device), two = g.tensor(cd, f32, squares.device);
                    g.backward_data(d, g.tensor(wd, half, w.device), g.tensor(xd, half, dy.device));
                    const Tensor centred = g.then(CUDNN_POINTWISE_SUB, bnx, m, f32), hat = g.then(CUDNN_POINTWISE_MUL, centred, inv, f32),
                                 z = g.then(CUDNN_POINTWISE_ADD, g.then(CUDNN_POINTWISE_MUL, hat, sc, f32), bi, f32);
                    g.pointwise(CUDNN_POINTWISE_RELU_BWD, d, z, dz, 0.2);
                    if (weights_too)
                        return g.norm_weights(
                            dz, bnx, m, inv, sc,
                            {two, one, g.tensor(cd, f32, eq0.device), g.tensor(cd, f32, eq1.device), g.tensor(cd, f32, eq2.device)});
                    g.sum(dz, one);
                    g.sum(g.then(CUDNN_POINTWISE_MUL, dz, hat, f32), two);
                },
                weights_too ? 4 : 10);
            report(what, s, b);
            if (!b.ok || planning()) continue;
            b.plan.run(0);
            CUDA(cudaDeviceSynchronize());
            const auto hat = [&](size_t i) { return (x.host[i] - mean.host[i % (size_t)c]) * inverse.host[i % (size_t)c]; };
            const auto out = dx.get();
            std::vector<float> plain(out), got, want;  // outputs with the slope divided out again, to compare with dgrad alone
            for (size_t i = 0; i < plain.size(); ++i)
                if (!(hat(i) * scale.host[i % (size_t)c] + bias.host[i % (size_t)c] > 0)) plain[i] *= 5;
            sample_forward(s, dy.host, rotate(s, w.host), plain, got, want);
            verdict(worst_of(got, want) < 0.02, name(s) + " " + what, worst_of(got, want));
            check_sums(name(s) + " " + what, out, [&](double v, size_t i) { return v * hat(i); });
        }
        {
            const std::string what = "f16 norm leaky > weight gradient";
            const Best b = build_and_find(
                [&](Graph& g) {
                    g.backward_weights(activation(g, g.tensor(xd, half, x.device), true), g.tensor(wd, half, dw.device),
                                       g.tensor(xd, half, dy.device));
                },
                4);
            report(what, s, b);
            if (b.ok && !planning()) {
                b.plan.run(0);
                CUDA(cudaDeviceSynchronize());
                host_activation(scale16, bias16);
                std::vector<float> got, want;
                const auto out = dw.get();
                for (uint32_t i = 0; i < 300; ++i) {
                    const int64_t k = mix(i) % c, tap = i % 9, cc = mix(i + 99) % c;
                    double total = 0;
                    for (int64_t p = 0; p < s.n * s.h * s.h; ++p) {
                        const int64_t yy = p / s.h % s.h + tap / 3 - 1, xx = p % s.h + tap % 3 - 1;
                        if (yy >= 0 && yy < s.h && xx >= 0 && xx < s.h)
                            total += (double)dy.host[(size_t)(p * c + k)] * act[(size_t)((p + (tap / 3 - 1) * s.h + tap % 3 - 1) * c + cc)];
                    }
                    got.push_back(out[(size_t)((k * 9 + tap) * c + cc)]), want.push_back((float)total);
                }
                verdict(worst_of(got, want) < 0.02, name(s) + " " + what, worst_of(got, want));
            }
        }
    }
}
int main(int argc, char** argv) {
    std::string step = argc > 1 ? argv[1] : "";
    if (argc == 4 && std::string(argv[2]) == "--plan") {
        std::ifstream f(argv[3], std::ios::binary);
        device_json.assign(std::istreambuf_iterator<char>(f), {});
        while (!device_json.empty() && device_json.back() == '\n') device_json.pop_back();
    }
    if (step != "dgrad" && step != "fused") {
        std::fprintf(stderr, "Usage: jem_probe_cudnn dgrad|fused [--plan GPU.json]\n");
        return 2;
    }
    line("info", "cuDNN %zu", cudnnGetVersion());
    if (!planning() && cudnnCreate(&handle) != CUDNN_STATUS_SUCCESS) {
        line("FAIL", "cudnnCreate: %s", last_error().c_str());
        return 1;
    }
    step == "dgrad" ? step_dgrad() : step_fused();
    line(failures ? "FAIL" : "ok", "step %s: %d failures", step.c_str(), failures);
    return failures != 0;
}
