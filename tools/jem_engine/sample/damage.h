// What is done to images that chains are to restore.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/settings/settings.h"

namespace jem {

class Damage {
public:
    // none, half (the lower half becomes U(-1, 1)), half:grey (0), noise or noise:SIGMA (N(0, SIGMA^2) is added, in units of x, and clamped
    // to [-1, 1]). InputError for anything else.
    explicit Damage(const std::string& text);

    bool any() const { return kind_ != Kind::none; }
    bool leaves_known() const { return kind_ == Kind::half; }
    // images: [numbers, H, W, C], changed; the draws depend on seed and each image's number alone.
    void apply(std::span<double> images, std::span<const int64_t> numbers, const Settings& settings) const;
    // [count, H, W, C]: 1 where a value is as it was.
    std::vector<int32_t> known(int64_t count, const Settings& settings) const;

private:
    enum class Kind { none, half, noise };
    Kind kind_ = Kind::none;
    bool grey_ = false;
    double sigma_ = 0.3;
};

}  // namespace jem
