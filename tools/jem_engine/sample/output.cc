#include "tools/jem_engine/sample/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/network/file_tensors.h"

namespace jem {
namespace {

constexpr int64_t kLeastColumns = 5;  // below that a row a class makes no sheet
constexpr int64_t kPlainColumns = 10;
constexpr int64_t kSheetPixels = 64;            // each image is enlarged to about so many
constexpr float kBlank = 2 * 235.0f / 255 - 1;  // the sheet's own background
constexpr size_t kMostLines = 10;

// The class that a sample belongs to: the one that was wanted, else the one that is seen.
int64_t class_of(const Sample& s) { return s.target >= 0 ? s.target : s.label; }

int64_t row_cells(const SampleOptions& o, int64_t frames) {
    const int64_t before = o.damaged() ? 2 : 0, course = o.snapshots > 0 ? frames : 1;
    return before + course + (o.neighbours > 0 ? 1 + o.neighbours : 0);
}

// Pixels from the samples' least to their greatest value as [-1, 1].
std::vector<Sample> stretched(std::vector<Sample> samples) {
    float low = 1, high = -1;
    for (const Sample& s : samples)
        for (const float v : s.pixels) low = std::min(low, v), high = std::max(high, v);
    const float scale = high > low ? 2 / (high - low) : 1;
    const auto stretch = [&](std::vector<float>& pixels) {
        for (float& v : pixels) v = std::clamp((v - low) * scale - 1, -1.0f, 1.0f);
    };
    for (Sample& s : samples) {
        stretch(s.pixels);
        for (std::vector<float>& frame : s.frames) stretch(frame);
    }
    return samples;
}

}  // namespace

SheetLayout SampleSheet::layout(int64_t cells, int64_t columns) const {
    return {.count = static_cast<int>(cells),
            .height = static_cast<int>(s_.image_size),
            .width = static_cast<int>(s_.image_size),
            .channels = static_cast<int>(s_.in_channels),
            .columns = static_cast<int>(std::min(columns, cells)),
            .scale = static_cast<int>(std::max<int64_t>(1, kSheetPixels / s_.image_size))};
}

SampleSheet::SampleSheet(const SampleOptions& options, const Settings& settings, int64_t samples, int64_t frames)
    : o_(options), s_(settings) {
    const int64_t columns = o_.rows() ? row_cells(o_, frames) : kPlainColumns;
    require_sheet_fits(layout(o_.rows() ? samples * columns : samples, columns));
}

void SampleSheet::write_classes(const std::string& path, const std::vector<Sample>& samples) const {
    const int64_t per_class = std::ssize(samples) / s_.num_classes;
    const bool by_energy = o_.given() && o_.from != "buffer" && o_.pick != "random";
    const bool rows = !o_.label && !by_energy && per_class >= kLeastColumns;
    const int64_t columns = rows ? per_class : kPlainColumns;
    std::vector<float> images;
    int64_t cells = 0;
    for (size_t i = 0; i < samples.size(); ++i) {
        const bool new_class = i > 0 && class_of(samples[i]) != class_of(samples[i - 1]);
        for (; rows && new_class && cells % columns != 0; ++cells) images.insert(images.end(), samples[i].pixels.size(), kBlank);
        images.insert(images.end(), samples[i].pixels.begin(), samples[i].pixels.end());
        ++cells;
    }
    write_sheet(path, images, layout(cells, columns));
}

std::vector<std::vector<float>> SampleSheet::row(const Sample& s) const {
    std::vector<std::vector<float>> cells;
    if (o_.damaged()) cells = {s.original, s.damaged};
    if (s.frames.empty())
        cells.push_back(s.pixels);
    else
        cells.insert(cells.end(), s.frames.begin(), s.frames.end());
    if (!s.neighbour_pixels.empty()) {
        cells.emplace_back(s.pixels.size(), kBlank);
        cells.insert(cells.end(), s.neighbour_pixels.begin(), s.neighbour_pixels.end());
    }
    return cells;
}

void SampleSheet::write(const std::string& path, const std::vector<Sample>& samples) const {
    if (o_.stretch) return write_as_they_are(path, stretched(samples));
    write_as_they_are(path, samples);
}

void SampleSheet::write_as_they_are(const std::string& path, const std::vector<Sample>& samples) const {
    if (!o_.rows()) return write_classes(path, samples);
    std::vector<float> images;
    int64_t cells = 0, columns = 1;
    for (const Sample& s : samples) {
        const std::vector<std::vector<float>> of_sample = row(s);
        columns = std::ssize(of_sample);
        cells += columns;
        for (const std::vector<float>& cell : of_sample) images.insert(images.end(), cell.begin(), cell.end());
    }
    write_sheet(path, images, layout(cells, columns));
}

void write_raw(const std::string& path, const std::vector<Sample>& samples, const Settings& s, const std::vector<int64_t>& frame_steps) {
    const int64_t n = std::ssize(samples), h = s.image_size, pixels = s.in_channels * h * h;
    SafetensorsFile file;
    const auto add_images = [&](const std::string& name, const std::vector<int64_t>& leading, const auto& visit) {
        std::vector<float> images;
        for (const Sample& sample : samples)
            visit(sample, [&](const std::vector<float>& image) {
                const size_t at = images.size();
                images.resize(at + static_cast<size_t>(pixels));
                transpose(std::span<const float>(image), s.in_channels, std::span(images).subspan(at));
            });
        std::vector<int64_t> shape = leading;
        shape.insert(shape.end(), {s.in_channels, h, h});
        file.tensors[name] = make_file_tensor(std::span<const float>(images), shape);
    };
    const auto add_numbers = [&](const std::string& name, const auto& value) {
        std::vector<int64_t> numbers;
        for (const Sample& sample : samples) numbers.push_back(value(sample));
        file.tensors[name] = make_file_tensor(std::span<const int64_t>(numbers), {n});
    };
    std::vector<float> logits, lse, distances;
    std::vector<int64_t> neighbours;
    for (const Sample& sample : samples) {
        logits.insert(logits.end(), sample.logits.begin(), sample.logits.end());
        lse.push_back(static_cast<float>(sample.lse));
        for (const Neighbour& one : sample.neighbours) {
            neighbours.push_back(one.number);
            distances.push_back(static_cast<float>(one.distance));
        }
    }
    add_images("images", {n}, [](const Sample& sample, const auto& add) { add(sample.pixels); });
    add_numbers("labels", [](const Sample& sample) { return sample.label; });
    file.tensors["logits"] = make_file_tensor(std::span<const float>(logits), {n, s.num_classes});
    file.tensors["lse"] = make_file_tensor(std::span<const float>(lse), {n});
    if (samples.front().target >= 0) add_numbers("targets", [](const Sample& sample) { return sample.target; });
    if (samples.front().source >= 0) add_numbers("sources", [](const Sample& sample) { return sample.source; });
    if (samples.front().true_label >= 0) add_numbers("true_labels", [](const Sample& sample) { return sample.true_label; });
    if (!samples.front().original.empty()) {
        add_images("originals", {n}, [](const Sample& sample, const auto& add) { add(sample.original); });
        add_images("damaged", {n}, [](const Sample& sample, const auto& add) { add(sample.damaged); });
    }
    if (!samples.front().frames.empty()) {
        add_images("frames", {n, std::ssize(frame_steps)}, [](const Sample& sample, const auto& add) {
            for (const std::vector<float>& frame : sample.frames) add(frame);
        });
        file.tensors["frame_steps"] = make_file_tensor(std::span<const int64_t>(frame_steps), {std::ssize(frame_steps)});
    }
    if (!neighbours.empty()) {
        const std::vector<int64_t> shape = {n, std::ssize(neighbours) / n};
        file.tensors["neighbours"] = make_file_tensor(std::span<const int64_t>(neighbours), shape);
        file.tensors["neighbour_distances"] = make_file_tensor(std::span<const float>(distances), shape);
    }
    file.write_atomically(path);
}

Restoration restoration_of(const std::vector<Sample>& samples) {
    double damaged = 0, restored = 0, count = 0;
    for (const Sample& s : samples)
        for (size_t i = 0; i < s.pixels.size(); ++i, ++count) {
            damaged += std::pow(double{s.damaged[i]} - double{s.original[i]}, 2);
            restored += std::pow(double{s.pixels[i]} - double{s.original[i]}, 2);
        }
    constexpr double kUnits = 255.0 / 2;
    return {kUnits * std::sqrt(damaged / count), kUnits * std::sqrt(restored / count)};
}

nlohmann::ordered_json json_of(const std::vector<Sample>& samples) {
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (const Sample& s : samples) {
        nlohmann::ordered_json one = {{"label", s.label}, {"confidence", s.confidence}, {"lse", s.lse}};
        if (s.target >= 0) one["target"] = s.target;
        if (s.source >= 0) one["source"] = s.source;
        if (s.true_label >= 0) one["true_label"] = s.true_label;
        for (const Neighbour& neighbour : s.neighbours) {
            one["neighbours"].push_back(neighbour.number);
            one["neighbour_distances"].push_back(neighbour.distance);
        }
        all.push_back(one);
    }
    return all;
}

std::string lines_of(const std::vector<Sample>& samples) {
    const Sample& first = samples.front();
    const auto dash = [](bool there, const std::string& text) { return there ? text : std::string("-"); };
    std::string text = fmt::format("{:>8} {:>5} {:>9} {:>6} {:>10}  {}\n", "image", "label", "predicted", "p(y|x)", "LSE",
                                   first.neighbours.empty() ? "" : "nearest training image (distance)");
    for (size_t i = 0; i < std::min(samples.size(), kMostLines); ++i) {
        const Sample& s = samples[i];
        text += fmt::format("{:>8} {:>5} {:>9} {:>6.3f} {:>10.4f}", dash(s.source >= 0, fmt::format("{}", s.source)),
                            dash(s.true_label >= 0, fmt::format("{}", s.true_label)), s.label, s.confidence, s.lse);
        if (!s.neighbours.empty()) text += fmt::format("  {} ({:.3f})", s.neighbours[0].number, s.neighbours[0].distance);
        text += "\n";
    }
    if (samples.size() > kMostLines) text += fmt::format("     ... {} more; --json and --raw have all\n", samples.size() - kMostLines);
    return text;
}

}  // namespace jem
