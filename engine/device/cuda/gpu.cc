#include "engine/device/cuda/gpu.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>
#include <system_error>

#include "data/input_error.h"
#include "engine/files/json.h"

namespace jem {
namespace {

using Json = nlohmann::json;

// What NVIDIA publishes of each GPU. Peaks are dense (without the factor 2 of structured sparsity), at boost clock, with
// products summed in f32: the T4's and A100's data sheets, the Ada and Blackwell whitepapers of the GeForce cards, the H100 SXM
// data sheet halved where it counts sparsity, the HGX B200 data sheet divided by its eight GPUs and halved likewise.
struct Published {
    const char* name;
    const char* title;
    int compute_capability;  // 10 * major + minor
    int multiprocessors;
    int64_t memory_bytes;
    int64_t l2_bytes;
    int shared_bytes_a_block;  // opt-in
    int reserved_shared_bytes;
    int blocks, threads;  // of a multiprocessor
    int core_khz, memory_khz;
    double bandwidth, flops_f32, flops_tf32, flops_bf16;
};

constexpr std::array kPublished = {
    Published{"t4", "Tesla T4", 75, 40, 15828320256, 4194304, 65536, 0, 16, 1024, 1590000, 5001000, 320e9, 8.1e12, 0, 0},
    Published{"a100", "NVIDIA A100-SXM4-80GB", 80, 108, 85094825984, 41943040, 166912, 1024, 32, 2048, 1410000, 1593000, 2039e9, 19.5e12,
              156e12, 312e12},
    Published{"rtx4090", "NVIDIA GeForce RTX 4090", 89, 128, 25386352640, 75497472, 101376, 1024, 24, 1536, 2520000, 10501000, 1008e9,
              82.6e12, 82.6e12, 165.2e12},
    Published{"h100", "NVIDIA H100 80GB HBM3", 90, 132, 85029158912, 52428800, 232448, 1024, 32, 2048, 1980000, 2619000, 3350e9, 67e12,
              494.7e12, 989.4e12},
    Published{"b200", "NVIDIA B200", 100, 148, 191000000000, 132644864, 232448, 1024, 32, 2048, 1965000, 3996000, 8000e9, 75e12, 1125e12,
              2250e12},
    Published{"rtx5090", "NVIDIA GeForce RTX 5090", 120, 170, 33600000000, 100663296, 101376, 1024, 24, 1536, 2407000, 14001000, 1792e9,
              104.8e12, 104.8e12, 209.5e12}};

// Our own keys beside cuDNN's, all optional.
constexpr std::array kPeakKeys = {"bandwidth", "flopsF32", "flopsTF32", "flopsBF16"};
constexpr const char* kMemoryKey = "totalGlobalMem";  // alone beyond this
constexpr int64_t kMostCount = std::numeric_limits<int32_t>::max();
constexpr std::array kCountKeys = {"regsPerBlock",
                                   "multiProcessorCount",
                                   "warpSize",
                                   "maxSharedMemoryPerBlock",
                                   "maxSharedMemoryPerBlockOptin",
                                   "maxRegistersPerSM",
                                   "maxCtasPerSM",
                                   "maxThreadsPerBlock",
                                   "maxThreadsPerSM",
                                   kMemoryKey,
                                   "smClockRateKHz",
                                   "memClockRateKHz",
                                   "l2CacheSize",
                                   "deviceVer",
                                   "driverVer"};
constexpr std::array kFlagKeys = {"reservedSharedMemoryPerBlock", "pciDeviceId", "isTccDriver", "supportCoopLaunch", "cudaDeviceId"};
constexpr std::array kSizeKeys = {"maxGridSize", "maxBlockSize"};

GpuDescription described(const Published& p) {
    const Json json = {{"maxGridSize", {2147483647, 65535, 65535}},
                       {"maxBlockSize", {1024, 1024, 64}},
                       {"regsPerBlock", 65536},
                       {"multiProcessorCount", p.multiprocessors},
                       {"warpSize", 32},
                       {"maxSharedMemoryPerBlock", 49152},
                       {"maxSharedMemoryPerBlockOptin", p.shared_bytes_a_block},
                       {"reservedSharedMemoryPerBlock", p.reserved_shared_bytes},
                       {"maxRegistersPerSM", 65536},
                       {"maxCtasPerSM", p.blocks},
                       {"maxThreadsPerBlock", 1024},
                       {"maxThreadsPerSM", p.threads},
                       {"pciDeviceId", 0},
                       {"isTccDriver", 0},
                       {"supportCoopLaunch", 1},
                       {kMemoryKey, p.memory_bytes},
                       {"smClockRateKHz", p.core_khz},
                       {"memClockRateKHz", p.memory_khz},
                       {"l2CacheSize", p.l2_bytes},
                       {"cudaDeviceId", 0},
                       {"deviceVer", p.compute_capability * 10},
                       {"driverVer", 13000},
                       {"deviceName", p.title}};
    return {.name = p.name,
            .title = p.title,
            .json = json.dump(),
            .sm = p.compute_capability,
            .multiprocessors = p.multiprocessors,
            .memory_bytes = static_cast<size_t>(p.memory_bytes),
            .bandwidth = p.bandwidth,
            .flops_f32 = p.flops_f32,
            .flops_tf32 = p.flops_tf32,
            .flops_bf16 = p.flops_bf16};
}

std::string joined_names() {
    std::string all;
    for (const Published& p : kPublished) all += (all.empty() ? "" : ", ") + std::string(p.name);
    return all;
}

class GpuFile {
public:
    explicit GpuFile(const std::string& path) : path_(path) {
        errno = 0;
        std::ifstream file(path, std::ios::binary);
        if (!file && errno == ENOENT) refuse("it is neither a known name nor a file");
        if (!file) refuse("the file cannot be read: " + std::generic_category().message(errno));
        std::stringstream text;
        text << file.rdbuf();
        json_ = parse_json(text.str());
        if (!json_.is_object()) refuse("it is no JSON object");
    }

    GpuDescription read() {
        for (const char* key : kCountKeys) whole(key, 1);
        for (const char* key : kFlagKeys) whole(key, 0);
        for (const char* key : kSizeKeys) {
            const Json& size = at(key);
            if (!size.is_array() || size.size() != 3) refuse(std::string(key) + " is not a list of three numbers");
            for (const Json& n : size)
                if (!fits(n, 1, kMostCount)) refuse(std::string(key) + " holds something that is no positive number of 31 bits");
        }
        if (!at("deviceName").is_string()) refuse("deviceName is no text");
        const auto& name = at("deviceName").get_ref<const std::string&>();
        if (std::any_of(name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < ' '; }))
            refuse("deviceName holds control characters");
        const int64_t version = whole("deviceVer", 1);
        if (version % 10 != 0 || version < 500 || version > 9990)
            refuse("deviceVer is " + std::to_string(version) + ", expected 100 * major + 10 * minor, such as 900");
        if (whole("warpSize", 1) != 32) refuse("warpSize is not 32");

        GpuDescription gpu;
        gpu.name = path_;
        gpu.title = name;
        gpu.sm = static_cast<int>(version / 10);
        gpu.multiprocessors = static_cast<int>(whole("multiProcessorCount", 1));
        gpu.memory_bytes = static_cast<size_t>(whole(kMemoryKey, 1));
        const std::array peaks = {&gpu.bandwidth, &gpu.flops_f32, &gpu.flops_tf32, &gpu.flops_bf16};
        for (size_t i = 0; i < kPeakKeys.size(); ++i) {
            if (!json_.contains(kPeakKeys[i])) continue;
            const Json& value = json_[kPeakKeys[i]];
            if (!value.is_number() || !(value.get<double>() > 0)) refuse(std::string(kPeakKeys[i]) + " is no positive number");
            *peaks[i] = value.get<double>();
            json_.erase(kPeakKeys[i]);  // cuDNN knows nothing of it
        }
        gpu.json = json_.dump(-1, ' ', false, Json::error_handler_t::replace);
        return gpu;
    }

private:
    [[noreturn]] void refuse(const std::string& why) const {
        throw InputError("--gpu " + path_ + " describes no GPU (" + why + "). Give one of " + joined_names() +
                         ", or a JSON file with the keys of cuDNN's device properties.");
    }
    const Json& at(const char* key) const {
        if (!json_.contains(key)) refuse(std::string("the key ") + key + " is missing");
        return json_[key];
    }
    static bool fits(const Json& value, int64_t least, int64_t most) {
        // beyond 63 bits it turns negative
        return value.is_number_integer() && value.get<int64_t>() >= least && value.get<int64_t>() <= most;
    }
    int64_t whole(const char* key, int64_t least) const {
        const Json& value = at(key);
        const int64_t most = std::string_view(key) == kMemoryKey ? std::numeric_limits<int64_t>::max() : kMostCount;
        if (!fits(value, least, most))
            refuse(std::string(key) + " is no whole number from " + std::to_string(least) + " to " + std::to_string(most));
        return value.get<int64_t>();
    }

    std::string path_;
    Json json_;
};

}  // namespace

const char* precision_name(CudaPrecision precision) {
    switch (precision) {
        case CudaPrecision::f32:
            return "f32";
        case CudaPrecision::tf32:
            return "tf32";
        case CudaPrecision::bf16:
            return "bf16";
    }
    return "?";
}

CudaPrecision cuda_precision(const std::string& name) {
    for (const CudaPrecision p : {CudaPrecision::f32, CudaPrecision::tf32, CudaPrecision::bf16})
        if (name == precision_name(p)) return p;
    throw InputError("--precision " + name + " on a GPU (it knows f32, tf32 and bf16). Choose one of these.");
}

std::vector<std::string> gpu_names() {
    std::vector<std::string> names;
    for (const Published& p : kPublished) names.push_back(p.name);
    return names;
}

GpuDescription describe_gpu(const std::string& name_or_file) {
    for (const Published& p : kPublished)
        if (name_or_file == p.name) return described(p);
    return GpuFile(name_or_file).read();
}

}  // namespace jem
