#include "tools/jem_engine/sample/damage.h"

#include <algorithm>
#include <cstdlib>

#include "data/input_error.h"
#include "kernels/random.h"

namespace jem {
namespace {

int64_t pixels_of(const Settings& s) { return s.in_channels * s.image_size * s.image_size; }

// The first value of an image that is in its lower half.
int64_t first_lost(const Settings& s) { return s.image_size / 2 * s.image_size * s.in_channels; }

}  // namespace

Damage::Damage(const std::string& text) {
    constexpr const char* kSigma = "noise:";
    if (text == "none") return;
    if (text == "half" || text == "half:grey") {
        kind_ = Kind::half;
        grey_ = text != "half";
        return;
    }
    kind_ = Kind::noise;
    if (text == "noise") return;
    char* end = nullptr;
    const std::string number = text.starts_with(kSigma) ? text.substr(std::string(kSigma).size()) : "";
    sigma_ = std::strtod(number.c_str(), &end);
    if (number.empty() || *end != 0 || !(sigma_ > 0 && sigma_ <= 10))
        throw InputError("--damage is \"" + text +
                         "\" (there are none, half, half:grey, noise and noise:SIGMA, above 0 up to 10). Give one of these.");
}

void Damage::apply(std::span<double> images, std::span<const int64_t> numbers, const Settings& s) const {
    if (!any()) return;
    const int64_t pixels = pixels_of(s), fours = (pixels + 3) / 4;
    for (size_t n = 0; n < numbers.size(); ++n) {
        const std::span<double> image = images.subspan(n * static_cast<size_t>(pixels), static_cast<size_t>(pixels));
        for (int64_t i = kind_ == Kind::half ? first_lost(s) : 0; i < pixels; ++i) {
            const Random4 drawn = random4(s.seed, RandomStream::damage, 0, 0, static_cast<uint64_t>(numbers[n] * fours + i / 4));
            double& x = image[static_cast<size_t>(i)];
            if (kind_ == Kind::half)
                x = grey_ ? 0 : 2 * double{uniform_of(drawn.v[i % 4])} - 1;
            else
                x = std::clamp(x + sigma_ * double{normals_of(drawn).v[i % 4]}, -1.0, 1.0);
        }
    }
}

std::vector<int32_t> Damage::known(int64_t count, const Settings& s) const {
    const int64_t pixels = pixels_of(s);
    std::vector<int32_t> marks(static_cast<size_t>(count * pixels));
    for (int64_t i = 0; i < count * pixels; ++i) marks[static_cast<size_t>(i)] = i % pixels < first_lost(s) ? 1 : 0;
    return marks;
}

}  // namespace jem
