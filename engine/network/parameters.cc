#include "engine/network/parameters.h"

#include <algorithm>
#include <cmath>

#include "data/input_error.h"
#include "kernels/random.h"

namespace jem {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? "," : "") + std::to_string(shape[i]);
    return text + "]";
}

// Index in file order ([out, in, kh, kw]) of the i-th element in device order ([out, kh, kw, in]).
int64_t file_index(const TensorInfo& info, int64_t i) {
    if (info.shape.size() != 4) return i;
    const int64_t in = info.shape[1], taps = info.shape[2] * info.shape[3];
    const int64_t c = i % in, tap = i / in % taps, out = i / (in * taps);
    return (out * in + c) * taps + tap;
}

constexpr const char* kIgnoredCounter = "num_batches_tracked";

}  // namespace

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

std::vector<double> to_channels_last(std::span<const double> nchw, int64_t n, int64_t c, int64_t hw) {
    std::vector<double> out(nchw.size());
    for (int64_t i = 0; i < n; ++i)
        for (int64_t k = 0; k < c; ++k)
            for (int64_t p = 0; p < hw; ++p)
                out[static_cast<size_t>((i * hw + p) * c + k)] = nchw[static_cast<size_t>((i * c + k) * hw + p)];
    return out;
}

std::vector<double> to_channels_first(std::span<const double> nhwc, int64_t n, int64_t c, int64_t hw) {
    return to_channels_last(nhwc, n, hw, c);  // the same transposition with the roles exchanged
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
    for (const TensorInfo& info : network_.parameters()) {
        std::vector<double> values(static_cast<size_t>(info.count()), info.initial);
        for (double& v : values) {
            if (info.fan_in > 0) {
                const Random4 r = random4(seed, RandomStream::parameters, 0, 0, element / 4);
                v = static_cast<float>((2.0 * uniform_of(r.v[element % 4]) - 1.0) / std::sqrt(static_cast<double>(info.fan_in)));
            }
            ++element;
        }
        write(weights(), info, values);
    }
    for (const TensorInfo& info : network_.statistics())
        write(statistics(), info, std::vector<double>(static_cast<size_t>(info.count()), info.initial));
    if (options_.average) device_.copy(average().data, weights().data, weights().bytes());
    device_.synchronize();
}

FileTensor Parameters::read(Array flat, const TensorInfo& info) const {
    const std::vector<double> values = download_values(device_, flat.slice(info.offset, info.count()));
    std::vector<double> ordered(values.size());
    for (size_t i = 0; i < values.size(); ++i) ordered[static_cast<size_t>(file_index(info, static_cast<int64_t>(i)))] = values[i];
    if (flat.type == DType::f64) return make_file_tensor(std::span<const double>(ordered), info.shape);
    const std::vector<float> floats(ordered.begin(), ordered.end());
    return make_file_tensor(std::span<const float>(floats), info.shape);
}

void Parameters::write(Array flat, const TensorInfo& info, const std::vector<double>& values) {
    std::vector<double> ordered(values.size());
    for (size_t i = 0; i < values.size(); ++i) ordered[i] = values[static_cast<size_t>(file_index(info, static_cast<int64_t>(i)))];
    upload_values(device_, flat.slice(info.offset, info.count()), ordered);
}

void Parameters::load(const SafetensorsFile& file, const std::string& path, const std::vector<std::string>& allowed_prefixes) {
    std::string differences;
    const auto check = [&](const TensorInfo& info) {
        if (!file.has(info.name))
            differences += "\n  missing: " + info.name + " " + shape_text(info.shape);
        else if (file.at(info.name).shape != info.shape)
            differences += "\n  shape of " + info.name + ": " + shape_text(file.at(info.name).shape) + " in the file, " +
                           shape_text(info.shape) + " expected";
    };
    std::vector<std::string> known;
    for (const auto* infos : {&network_.parameters(), &network_.statistics()})
        for (const TensorInfo& info : *infos) {
            check(info);
            known.push_back(info.name);
        }
    std::sort(known.begin(), known.end());
    for (const auto& entry : file.tensors) {
        const std::string& name = entry.first;
        const bool allowed = name.ends_with(kIgnoredCounter) || starts_with_any(name, network_.idle_prefixes()) ||
                             starts_with_any(name, network_.unread_prefixes()) || starts_with_any(name, allowed_prefixes);
        if (!allowed && !std::binary_search(known.begin(), known.end(), name)) differences += "\n  superfluous: " + name;
    }
    if (!differences.empty())
        throw InputError("Checkpoint " + path + " does not fit the network:" + differences +
                         "\nGive the --depth, --width, --norm, --energy-head, --in-channels and --num-classes that it was trained with.");
    for (const TensorInfo& info : network_.parameters()) write(weights(), info, file.doubles(info.name));
    for (const TensorInfo& info : network_.statistics()) write(statistics(), info, file.doubles(info.name));
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
    for (const TensorInfo& info : network_.parameters()) write(flat, info, file.doubles(prefix + info.name));
    return true;
}

void Parameters::save_array(Array flat, SafetensorsFile& file, const std::string& prefix) const {
    for (const TensorInfo& info : network_.parameters()) file.tensors[prefix + info.name] = read(flat, info);
}

void Parameters::save_statistics(SafetensorsFile& file, const std::string& prefix) {
    for (const TensorInfo& info : network_.statistics()) file.tensors[prefix + info.name] = read(statistics(), info);
}

}  // namespace jem
