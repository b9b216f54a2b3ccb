#include "engine/training/labelled_images.h"

#include <algorithm>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "kernels/random.h"

namespace jem {
namespace {

// "3 images", "1 image"
std::string images_text(int64_t n) { return std::to_string(n) + (n == 1 ? " image" : " images"); }

}  // namespace

void require_labels(const ImageSet& images, const Settings& s) {
    std::vector<int64_t> counts(static_cast<size_t>(images.num_classes));
    for (const int32_t label : images.labels) ++counts[static_cast<size_t>(label)];
    const auto least = std::min_element(counts.begin(), counts.end());
    if (least == counts.end() || *least >= s.labels_per_class) return;
    const auto c = static_cast<size_t>(least - counts.begin());
    const std::string name = c < images.class_names.size() ? " (" + images.class_names[c] + ")" : "";
    throw InputError("--labels-per-class is " + std::to_string(s.labels_per_class) + " (the training set has " + images_text(*least) +
                     " of class " + std::to_string(c) + name + "). " +
                     (*least > 0 ? "Give " + std::to_string(*least) + " or less." : "Leave it out, or the class."));
}

ImageSet labelled_images(const ImageSet& images, const Settings& s) {
    ImageSet chosen = {.name = images.name,
                       .channels = images.channels,
                       .height = images.height,
                       .width = images.width,
                       .num_classes = images.num_classes,
                       .class_names = images.class_names,
                       .flip = images.flip,
                       .pixels = {},
                       .labels = {}};
    const int64_t size = int64_t{images.channels} * images.height * images.width;
    chosen.pixels.reserve(static_cast<size_t>(s.labels_per_class * images.num_classes * size));  // a plan counts no more
    std::vector<int64_t> taken(static_cast<size_t>(images.num_classes));
    for (int64_t i = 0; i < images.count(); ++i) {
        const int64_t n =
            shuffled(static_cast<uint32_t>(i), static_cast<uint32_t>(images.count()), s.seed_of_split(), RandomStream::labelled, 0);
        const int32_t label = images.labels[static_cast<size_t>(n)];
        if (taken[static_cast<size_t>(label)]++ >= s.labels_per_class) continue;
        const auto image = images.pixels.begin() + n * size;
        chosen.pixels.insert(chosen.pixels.end(), image, image + size);
        chosen.labels.push_back(label);
    }
    return chosen;
}

}  // namespace jem
