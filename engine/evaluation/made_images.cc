#include "engine/evaluation/made_images.h"

#include <algorithm>
#include <memory>

#include "data/input_error.h"
#include "kernels/images.h"
#include "kernels/random.h"

namespace jem {
namespace {

constexpr int64_t kBatch = 100;  // as the protocol has it
constexpr const char *kInterpolation = "interpolation", *kUniform = "uniform", *kGaussian = "gaussian";

}  // namespace

const std::vector<std::string>& MadeImages::names() {
    static const std::vector<std::string> all = {kInterpolation, kUniform, kGaussian};
    return all;
}

int64_t MadeImages::count_of(const std::string& name, int64_t images) {
    return name == kInterpolation ? std::max<int64_t>(0, images / kBatch - 1) * kBatch : images;
}

MadeImages::MadeImages(const std::string& name, const ImageSet& images, std::vector<int64_t> numbers, uint64_t seed)
    : name_(name), images_(images), numbers_(std::move(numbers)), seed_(seed) {
    if (std::find(names().begin(), names().end(), name) == names().end())
        throw InputError("There are no made images \"" + name + "\" (known: interpolation, uniform, gaussian). Give one of these.");
    if (count() == 0)
        throw InputError(name + " of " + std::to_string(images.count()) +
                         " images is nothing (it takes two batches of 100). Leave it out.");
}

std::vector<double> MadeImages::image(int64_t n) const {
    const int64_t pixels = int64_t{1} * images_.channels * images_.height * images_.width;
    std::vector<double> x(static_cast<size_t>(pixels));
    if (name_ == kInterpolation) {
        const int64_t one = numbers_[static_cast<size_t>(n)], other = numbers_[static_cast<size_t>(n + kBatch)];
        const auto at = [&](int64_t image, int64_t i) {
            return pixel_value<double>(images_.pixels[static_cast<size_t>(image * pixels + i)]);
        };
        for (int64_t i = 0; i < pixels; ++i) x[static_cast<size_t>(i)] = (at(one, i) + at(other, i)) / 2;
        return x;
    }
    const bool uniform = name_ == kUniform;
    for (int64_t i = 0; i < pixels; i += 4) {
        const Random4 bits =
            random4(seed_, RandomStream::made_images, uniform ? 0 : 1, static_cast<uint32_t>(i / 4), static_cast<uint64_t>(n));
        const Normal4 normals = normals_of(bits);
        for (int64_t k = 0; k < 4 && i + k < pixels; ++k)
            x[static_cast<size_t>(i + k)] =
                uniform ? 2 * static_cast<double>(uniform_of(bits.v[k])) - 1 : std::clamp(static_cast<double>(normals.v[k]), -1.0, 1.0);
    }
    return x;
}

Predictor::Source MadeImages::source(Predictor& predictor) const {
    return [this, &predictor](const Array& to, int64_t first) {
        const int64_t pixels = int64_t{1} * images_.channels * images_.height * images_.width;
        std::vector<double> batch;
        for (int64_t n = first; n < first + to.count / pixels; ++n) {
            const std::vector<double> one = image(n);
            batch.insert(batch.end(), one.begin(), one.end());
        }
        predictor.values(batch)(to, 0);
    };
}

}  // namespace jem
