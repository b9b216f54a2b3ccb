#include "engine/evaluation/attack_starts.h"

#include <algorithm>
#include <cmath>

#include "kernels/images.h"

namespace jem {

std::vector<double> pixels_of(const ImageSet& set, std::span<const int64_t> numbers) {
    const int64_t pixels = int64_t{1} * set.channels * set.height * set.width;
    std::vector<double> x;
    for (const int64_t n : numbers)
        for (int64_t i = n * pixels; i < (n + 1) * pixels; ++i) x.push_back(pixel_value<double>(set.pixels[static_cast<size_t>(i)]));
    return x;
}

AttackBatch full_batch(const ImageSet& set, const std::vector<int64_t>& numbers, int64_t count) {
    AttackBatch batch;
    for (int64_t i = 0; i < count; ++i) {
        batch.numbers.push_back(numbers[static_cast<size_t>(i % std::ssize(numbers))]);
        batch.labels.push_back(set.labels[static_cast<size_t>(batch.numbers.back())]);
    }
    batch.centres = pixels_of(set, batch.numbers);
    return batch;
}

std::vector<double> attack_starts(const std::vector<double>& images, const std::vector<int64_t>& numbers, const AttackStart& s) {
    std::vector<double> x = images;
    const int64_t pixels = std::ssize(images) / std::max<int64_t>(1, std::ssize(numbers)), quads = (pixels + 3) / 4;
    const auto draw = [&](uint32_t step, uint64_t item) { return random4(s.seed, RandomStream::attack_start, s.number, step, item); };
    const bool linf = s.norm == AttackNorm::linf, edge = s.within == AttackStart::Within::edge;
    for (size_t n = 0; n < numbers.size(); ++n) {
        const auto image = static_cast<uint64_t>(numbers[n]);
        std::vector<double> offset;
        for (int64_t q = 0; q < quads; ++q) {
            const Random4 bits = draw(0, image * static_cast<uint64_t>(quads) + static_cast<uint64_t>(q));
            const Normal4 normals = normals_of(bits);
            for (int k = 0; k < 4 && std::ssize(offset) < pixels; ++k)
                offset.push_back(linf ? 2 * static_cast<double>(uniform_of(bits.v[k])) - 1 : static_cast<double>(normals.v[k]));
        }
        double largest = 0, squares = 0;
        for (const double v : offset) largest = std::max(largest, std::fabs(v)), squares += v * v;
        const double share = linf || edge ? 1 : static_cast<double>(uniform_of(draw(1, image).v[0]));
        const double scale = s.radius * share / (!linf ? std::sqrt(squares) : edge ? largest : 1);
        for (int64_t i = 0; i < pixels; ++i) {
            double& value = x[n * static_cast<size_t>(pixels) + static_cast<size_t>(i)];
            value = std::clamp(value + scale * offset[static_cast<size_t>(i)], -1.0, 1.0);
        }
    }
    return x;
}

}  // namespace jem
