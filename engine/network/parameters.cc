#include "engine/network/parameters.h"

#include <algorithm>
#include <cmath>

#include "data/input_error.h"
#include "engine/network/file_tensors.h"
#include "kernels/random.h"

namespace jem {
namespace {

Array part(Array flat, const TensorInfo& info) { return flat.slice(info.offset, info.count()); }

constexpr const char* kIgnoredCounter = "num_batches_tracked";
constexpr const char* kInitialized = ".initialized";
constexpr size_t kMostOfAKind = 4;  // differences that are listed

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? "," : "") + std::to_string(shape[i]);
    return text + "]";
}

bool starts_with_any(const std::string& name, const std::vector<std::string>& prefixes) {
    return std::any_of(prefixes.begin(), prefixes.end(), [&](const std::string& p) { return name.starts_with(p); });
}

void upload_values(Device& device, Array to, std::span<const double> values) {
    if (to.type == DType::f64) return device.upload(to.data, values.data(), to.bytes());
    const std::vector<float> floats(values.begin(), values.end());
    device.upload(to.data, floats.data(), to.bytes());
}

std::vector<double> download_values(Device& device, Array from) {
    std::vector<double> values(static_cast<size_t>(from.count));
    if (from.type == DType::f64) {
        device.download(values.data(), from.data, from.bytes());
        return values;
    }
    std::vector<float> floats(values.size());
    device.download(floats.data(), from.data, from.bytes());
    std::copy(floats.begin(), floats.end(), values.begin());
    return values;
}

std::string skipped_tensors(const SafetensorsFile& file, const Network& network) {
    std::string names;
    for (const auto& entry : file.tensors)
        if (starts_with_any(entry.first, network.unread_prefixes())) names += " " + entry.first;
    return names;
}

Parameters::Parameters(Device& device, Memory& memory, const Network& network, const Options& options)
    : device_(device), memory_(memory), network_(network), options_(options) {
    const size_t bytes = static_cast<size_t>(network.parameter_count()) * size_of(device.real_type());
    weights_ = memory.keep("parameters", "weights", bytes);
    statistics_ =
        memory.keep("statistics", "running statistics", static_cast<size_t>(network.statistic_count()) * size_of(device.real_type()));
    if (options.gradient) gradient_ = memory.keep("gradients", "gradient", bytes);
    if (options.optimizer_arrays > 0) first_ = memory.keep("optimizer", "velocity", bytes);
    if (options.optimizer_arrays > 1) second_ = memory.keep("optimizer", "second moment", bytes);
    if (options.perturbed) perturbed_ = memory.keep("perturbed parameters", "perturbed", bytes);
    if (options.average) average_ = memory.keep("average", "average", bytes);
}

void Parameters::initialise(uint64_t seed) {
    uint64_t element = 0;  // over all parameters in file order, so that a layout change keeps the network
    const auto value_of = [&](const TensorInfo& info) {
        if (info.fan_in == 0) return static_cast<float>(info.initial);
        const Random4 r = random4(seed, RandomStream::parameters, 0, 0, element / 4);
        if (info.deviation > 0) return static_cast<float>(info.deviation * static_cast<double>(normals_of(r).v[element % 4]));
        return static_cast<float>((2.0 * uniform_of(r.v[element % 4]) - 1.0) / std::sqrt(static_cast<double>(info.fan_in)));
    };
    for (const TensorInfo& info : network_.parameters()) {
        std::vector<float> values(static_cast<size_t>(info.count()));
        for (float& v : values) {
            v = value_of(info);
            ++element;
        }
        upload_tensor(device_, part(weights(), info), make_file_tensor(values, info.shape));
    }
    for (const TensorInfo& info : network_.statistics()) {
        const std::vector<float> values(static_cast<size_t>(info.count()), static_cast<float>(info.initial));
        upload_tensor(device_, part(statistics(), info), make_file_tensor(values, info.shape));
    }
    if (options_.optimizer_arrays > 0) device_.ops().fill_zero(velocity());
    if (options_.optimizer_arrays > 1) device_.ops().fill_zero(second());
    if (options_.average) device_.copy(average().data, weights().data, weights().bytes());
    device_.synchronize();
}

void check_tensors(const Network& network, const SafetensorsFile& file, const std::string& path,
                   const std::vector<std::string>& allowed_prefixes) {
    std::vector<std::string> shapes, missing, superfluous;
    bool any = false;
    const auto check = [&](const TensorInfo& info) {
        any = any || file.has(info.name);
        if (!file.has(info.name))
            missing.push_back("missing: " + info.name + " " + shape_text(info.shape));
        else if (file.at(info.name).shape != info.shape)
            shapes.push_back("shape of " + info.name + ": " + shape_text(file.at(info.name).shape) + " in the file, " +
                             shape_text(info.shape) + " expected");
    };
    std::vector<std::string> known;
    for (const auto* infos : {&network.parameters(), &network.statistics()})
        for (const TensorInfo& info : *infos) {
            check(info);
            known.push_back(info.name);
        }
    std::sort(known.begin(), known.end());
    for (const auto& entry : file.tensors) {
        const std::string& name = entry.first;
        const bool allowed = name.ends_with(kIgnoredCounter) || name.ends_with(kInitialized) ||
                             starts_with_any(name, network.idle_prefixes()) || starts_with_any(name, network.unread_prefixes()) ||
                             starts_with_any(name, allowed_prefixes);
        if (!allowed && !std::binary_search(known.begin(), known.end(), name)) superfluous.push_back("superfluous: " + name);
    }
    if (shapes.empty() && missing.empty() && superfluous.empty()) return;
    if (!any)
        throw InputError("Checkpoint " + path + " does not fit the network (it holds none of its tensors; its first is " +
                         (file.tensors.empty() ? "none" : "\"" + file.tensors.begin()->first + "\"") + ", the network's " +
                         network.parameters().front().name +
                         "). Give a checkpoint of this network; tools/convert makes one of the official codes' files.");
    std::string text;
    for (const auto* differences : {&shapes, &missing, &superfluous}) {
        for (size_t i = 0; i < std::min(differences->size(), kMostOfAKind); ++i) text += "\n  " + (*differences)[i];
        if (differences->size() > kMostOfAKind)
            text += "\n  and " + std::to_string(differences->size() - kMostOfAKind) + " more " +
                    (differences == &shapes    ? "of another shape"
                     : differences == &missing ? "that are missing"
                                               : "that are superfluous");
    }
    throw InputError("Checkpoint " + path + " does not fit the network:" + text + "\n" + network.weights_advice());
}

bool holds_unset_norms(const SafetensorsFile& file) {
    return std::any_of(file.tensors.begin(), file.tensors.end(), [](const auto& entry) {
        const auto bytes = entry.second.bytes();
        return entry.first.ends_with(kInitialized) && std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{}; });
    });
}

void Parameters::load(const SafetensorsFile& file, const std::string& path, const std::vector<std::string>& allowed_prefixes) {
    check_tensors(network_, file, path, allowed_prefixes);
    for (const TensorInfo& info : network_.parameters()) upload_tensor(device_, part(weights(), info), file.floating(info.name));
    for (const TensorInfo& info : network_.statistics()) upload_tensor(device_, part(statistics(), info), file.floating(info.name));
}

bool Parameters::load_array(Array flat, const SafetensorsFile& file, const std::string& prefix) {
    bool any = false;
    std::string missing;
    for (const TensorInfo& info : network_.parameters()) {
        const bool has = file.has(prefix + info.name) && file.at(prefix + info.name).shape == info.shape;
        any = any || file.has(prefix + info.name);
        if (!has) missing += " " + prefix + info.name;
    }
    if (!any) return false;
    if (!missing.empty()) throw InputError("Tensors are missing or have another shape:" + missing + ". Give a complete checkpoint.");
    for (const TensorInfo& info : network_.parameters()) upload_tensor(device_, part(flat, info), file.floating(prefix + info.name));
    return true;
}

void Parameters::save_array(Array flat, SafetensorsFile& file, const std::string& prefix) const {
    for (const TensorInfo& info : network_.parameters())
        file.tensors[prefix + info.name] = tensor_on(device_, part(flat, info), info.shape);
}

void Parameters::save_statistics(SafetensorsFile& file, const std::string& prefix) {
    for (const TensorInfo& info : network_.statistics())
        file.tensors[prefix + info.name] = tensor_on(device_, part(statistics(), info), info.shape);
}

}  // namespace jem
