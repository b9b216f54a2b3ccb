// Strangers that need no files: interpolations of a set's own images, and noise.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/image_set.h"
#include "engine/network/predictor.h"

namespace jem {

class MadeImages {
public:
    // "interpolation": means, not rounded, of consecutive batches of 100 images in the order of `numbers`; the last pair of full batches
    // ends it. "uniform": U(-1, 1). "gaussian": N(0, 1) cut to [-1, 1]. Noise is as many images as the set has. InputError for other names.
    // images must outlive it, and it its sources.
    MadeImages(const std::string& name, const ImageSet& images, std::vector<int64_t> numbers, uint64_t seed);

    static const std::vector<std::string>& names();
    // Of a set of so many images.
    static int64_t count_of(const std::string& name, int64_t images);

    int64_t count() const { return count_of(name_, images_.count()); }
    std::vector<double> image(int64_t n) const;  // [H*W*C] in [-1, 1]
    Predictor::Source source(Predictor& predictor) const;

private:
    std::string name_;
    const ImageSet& images_;
    std::vector<int64_t> numbers_;
    uint64_t seed_;
};

}  // namespace jem
