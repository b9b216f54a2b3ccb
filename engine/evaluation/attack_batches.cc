#include "engine/evaluation/attack_batches.h"

#include <fmt/format.h>

#include <algorithm>

namespace jem {

std::vector<int64_t> unbroken(Evaluation& e, const std::vector<int64_t>& images, const AttackBatches& b, const BatchAttack& attack) {
    std::vector<int64_t> still;
    const int64_t count = std::ssize(images);
    for (int64_t first = 0; first < count; first += b.batch) {
        const int64_t end = std::min(count, first + b.batch);
        const std::vector<int64_t> batch(images.begin() + first, images.begin() + end);
        const auto tell = [&](int64_t steps) {
            e.progress("Attacking, " + b.name, first * b.steps + steps * std::ssize(batch), count * b.steps);
        };
        const std::vector<double> broken = e.journal().piece(fmt::format("{}/{}", b.name, first), [&] {
            const std::vector<bool> flags = attack(batch, tell);
            return std::vector<double>(flags.begin(), flags.end());
        });
        for (size_t i = 0; i < batch.size(); ++i)
            if (broken.at(i) == 0) still.push_back(batch[i]);
        tell(b.steps);
    }
    return still;
}

}  // namespace jem
