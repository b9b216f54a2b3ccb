#include "engine/sampling/image_store.h"

#include <algorithm>
#include <stdexcept>

namespace jem {

int64_t largest_class_of(const ImageSet& images) {
    std::vector<int64_t> counts(static_cast<size_t>(images.num_classes));
    for (const int32_t label : images.labels) ++counts[static_cast<size_t>(label)];
    return counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
}

ImageStore::ImageStore(Device& device, Memory& memory, const ImageSetShape& shape, int64_t count, int64_t largest_class)
    : device_(device), memory_(memory), shape_(shape), count_(count), largest_class_(largest_class), classes_(shape.num_classes) {
    if (largest_class_ == 0) largest_class_ = (count + shape.num_classes - 1) / shape.num_classes;
    const auto n = static_cast<size_t>(count);
    const char* region = "images";
    pixels_ = memory.keep(region, "pixels", n * static_cast<size_t>(shape.height * shape.width * shape.channels));
    labels_ = memory.keep(region, "labels", n * sizeof(int32_t));
    class_order_ = memory.keep(region, "class order", n * sizeof(int32_t));
    class_begin_ = memory.keep(region, "class begin", static_cast<size_t>(shape.num_classes + 1) * sizeof(int32_t));
}

void ImageStore::upload(const ImageSet& images) {
    if (images.count() != count_) throw std::logic_error("An image set of another size than planned.");
    std::vector<int32_t> order, begin;
    const int labels = merged_ ? 1 : images.num_classes;
    begin.push_back(0);
    start_classes_.clear();
    for (int c = 0; c < labels; ++c) {
        for (size_t i = 0; i < images.labels.size(); ++i)
            if (merged_ || images.labels[i] == c) order.push_back(static_cast<int32_t>(i));
        const bool empty = std::ssize(order) == begin.back();
        start_classes_.push_back(empty ? -1 : static_cast<int32_t>(begin.size()) - 1);
        if (!empty) begin.push_back(static_cast<int32_t>(order.size()));
    }
    classes_ = std::ssize(begin) - 1;
    device_.upload(memory_.at(pixels_), images.pixels.data(), images.pixels.size());
    device_.upload(memory_.at(labels_), images.labels.data(), images.labels.size() * sizeof(int32_t));
    device_.upload(memory_.at(class_order_), order.data(), order.size() * sizeof(int32_t));
    device_.upload(memory_.at(class_begin_), begin.data(), begin.size() * sizeof(int32_t));
}

ResidentImages ImageStore::view() {
    const int64_t classes = merged_ ? 1 : classes_;
    return {.pixels = {memory_.at(pixels_), DType::u8, count_ * shape_.height * shape_.width * shape_.channels},
            .labels = {memory_.at(labels_), DType::i32, count_},
            .class_order = {memory_.at(class_order_), DType::i32, count_},
            .class_begin = {memory_.at(class_begin_), DType::i32, classes + 1},
            .count = count_,
            .height = shape_.height,
            .width = shape_.width,
            .channels = shape_.channels,
            .classes = classes,
            .largest_class = largest_class()};
}

}  // namespace jem
