// An image set on the device, as bytes, with its images listed by class.
#pragma once

#include <cstdint>
#include <vector>

#include "data/image_set.h"
#include "engine/memory/memory.h"

namespace jem {

class ImageStore {
public:
    // Registers memory for count images of that size. largest_class: images of the most frequent class, if known; else
    // count / classes is taken (for planning without data).
    ImageStore(Device& device, Memory& memory, const ImageSetShape& shape, int64_t count, int64_t largest_class = 0);

    void upload(const ImageSet& images);
    // Its classes are those that have images, in their order: a class without any has no Gaussian to start a chain from.
    ResidentImages view();

    size_t num_labels() const { return start_classes_.size(); }  // one where classes are merged; after upload
    // The number among view()'s classes of a label; -1 where no image has it. After upload.
    int32_t start_class(int64_t label) const { return start_classes_[static_cast<size_t>(merged_ ? 0 : label)]; }

    int64_t largest_class() const { return merged_ ? count_ : largest_class_; }

    // One class that holds everything: the single-Gaussian start.
    void merge_classes() { merged_ = true; }

private:
    Device& device_;
    Memory& memory_;
    ImageSetShape shape_;
    int64_t count_, largest_class_;
    bool merged_ = false;
    int64_t classes_;                     // that have images; all of them before upload
    std::vector<int32_t> start_classes_;  // [labels]
    Slot pixels_, labels_, class_order_, class_begin_;
};

// Images of the most frequent class.
int64_t largest_class_of(const ImageSet& images);

}  // namespace jem
