// What `jem_engine sample` was asked for, and what it makes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/evaluation/neighbours.h"
#include "tools/jem_engine/options.h"
#include "tools/jem_engine/sample/damage.h"

namespace jem {

struct SampleOptions {
    CommonOptions common;
    SettingsFlags flags;
    std::string checkpoint, from = "prior", sheet, raw, weights = "last", pick = "random", towards = "lse", damage = "none",
                            neighbours_by = "pixels", diagnose;
    std::optional<int64_t> steps, label;
    std::optional<double> min_confidence;
    int64_t count = 100, snapshots = 0, neighbours = 0;
    bool keep_known = false, metropolis = false, stretch = false;

    bool given() const { return from != "prior" && from != "noise"; }  // chains start at images that there are
    bool to_class() const { return towards == "class"; }
    bool damaged() const { return damage != "none"; }
    // Whether a sheet has a row for each sample, of what it came from and what is like it.
    bool rows() const { return snapshots > 0 || damaged() || neighbours > 0; }
};

struct Sample {
    std::vector<float> pixels;  // [H, W, C]
    std::vector<double> logits;
    int64_t label = 0;                                 // the first of the largest logits
    double confidence = 0;                             // p(label|x)
    double lse = 0;                                    // minus the energy
    int64_t target = -1;                               // the class that its chain climbed; -1: none
    int64_t source = -1;                               // number of the image that it started at; -1: none
    int64_t true_label = -1;                           // of that image; -1: not known
    std::vector<float> original, damaged;              // [H, W, C] where it was damaged
    std::vector<std::vector<float>> frames;            // [H, W, C] each
    std::vector<Neighbour> neighbours;                 // among the training images
    std::vector<std::vector<float>> neighbour_pixels;  // [H, W, C] each
};

}  // namespace jem
