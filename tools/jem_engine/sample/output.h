// What `jem_engine sample` writes and says of its samples.
#pragma once

#include <string>
#include <vector>

#include "tools/jem_engine/sample/options.h"
#include "tools/jem_engine/sheet.h"

namespace jem {

// A sheet of samples: a class a row where there are enough columns for it, else one after the other; or, of options.rows(), a row each:
// where it was damaged the original and the damaged image, then its frames or the sample itself, then its neighbours.
class SampleSheet {
public:
    // InputError where so many samples make too large a sheet.
    SampleSheet(const SampleOptions& options, const Settings& settings, int64_t samples, int64_t frames);
    void write(const std::string& path, const std::vector<Sample>& samples) const;

private:
    SheetLayout layout(int64_t cells, int64_t columns) const;
    void write_as_they_are(const std::string& path, const std::vector<Sample>& samples) const;
    void write_classes(const std::string& path, const std::vector<Sample>& samples) const;
    std::vector<std::vector<float>> row(const Sample& sample) const;

    const SampleOptions& o_;
    const Settings& s_;
};

// images [N,C,H,W], labels, logits, lse, and what else there is: docs/sampling.md.
void write_raw(const std::string& path, const std::vector<Sample>& samples, const Settings& settings,
               const std::vector<int64_t>& frame_steps);

// Root mean squares of what was damaged, and of what the chains left, from the originals; in 1/255 of the range of pixels.
struct Restoration {
    double damaged = 0, restored = 0;
};
Restoration restoration_of(const std::vector<Sample>& samples);

// Of each sample what --raw has besides arrays of pixels.
nlohmann::ordered_json json_of(const std::vector<Sample>& samples);
// The first few for people, a line each.
std::string lines_of(const std::vector<Sample>& samples);

}  // namespace jem
