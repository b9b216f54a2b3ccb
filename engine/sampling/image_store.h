// An image set on the device, as bytes, with its images listed by class.
#pragma once

#include "data/image_set.h"
#include "engine/memory/memory.h"

namespace jem {

class ImageStore {
public:
    // Registers memory for count images of that size. largest_class: images of the most frequent class, if known; else
    // count / classes is taken (for planning without data).
    ImageStore(Device& device, Memory& memory, const ImageSetShape& shape, int64_t count, int64_t largest_class = 0);

    void upload(const ImageSet& images);
    ResidentImages view();

    int64_t largest_class() const { return merged_ ? count_ : largest_class_; }

    // One class that holds everything: the single-Gaussian start.
    void merge_classes() { merged_ = true; }

private:
    Device& device_;
    Memory& memory_;
    ImageSetShape shape_;
    int64_t count_, largest_class_;
    bool merged_ = false;
    Slot pixels_, labels_, class_order_, class_begin_;
};

// Images of the most frequent class.
int64_t largest_class_of(const ImageSet& images);

}  // namespace jem
