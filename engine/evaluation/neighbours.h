// Which of many rows lie nearest to each of a few: the training images that a sample resembles.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "engine/evaluation/sample_quality.h"

namespace jem {

struct Neighbour {
    int64_t number = 0;   // of the reference's row
    double distance = 0;  // Euclidean
};

struct NeighbourReference {
    int64_t count = 0;
    // Rows first .. first + n - 1, [n, D]: asked for once each, in order.
    std::function<std::vector<float>(int64_t first, int64_t n)> rows;
};

/// The min(k, count) nearest rows of the reference for each of `samples`, the nearest first, of equal ones the first. Only a block of rows
/// is held at a time. Distances are right to 1e-7 of the rows' lengths. progress is told the rows done.
std::vector<std::vector<Neighbour>> nearest_neighbours(const Features& samples, const NeighbourReference& reference, int64_t k,
                                                       const std::function<void(int64_t done)>& progress = nullptr);

}  // namespace jem
