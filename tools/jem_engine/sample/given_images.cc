#include "tools/jem_engine/sample/given_images.h"

#include <memory>

#include "data/input_error.h"
#include "engine/evaluation/attack_starts.h"
#include "engine/run/checkpoint.h"

namespace jem {
namespace {

// The checkpoint's own, or that of the state beside it.
GivenImages buffer_of(const Checkpoint& checkpoint) {
    const Settings& s = checkpoint.settings;
    const std::optional<SavedBuffer> found = find_buffer(checkpoint.file, checkpoint.path);
    if (!found)
        throw InputError("There is no replay buffer (neither in " + checkpoint.path + " nor in " +
                         states_beside(checkpoint.path)[0].string() +
                         "). Use --from prior, or a run that trained with --p-x-weight above 0.");
    const std::vector<int64_t>& shape = found->images.shape;
    if (shape.size() != 4 || shape[0] < 1 || shape[1] != s.in_channels || shape[2] != s.image_size || shape[3] != s.image_size)
        throw InputError("The replay buffer of " + found->path + " holds no images of the network's size. Use its own run's checkpoint.");
    return {.path = found->path,
            .count = shape[0],
            .images = [images = found->images](std::span<const int64_t> numbers) { return images_of_buffer(images, numbers); },
            .labels = {}};
}

GivenImages images_of(ImageSet set, const std::string& from, bool labels) {
    if (set.count() == 0) throw InputError("--from " + from + " holds no image. Give other images.");
    GivenImages given = {.path = {}, .count = set.count(), .images = {}, .labels = {}};
    if (labels) given.labels = set.labels;
    const auto kept = std::make_shared<const ImageSet>(std::move(set));
    given.images = [kept](std::span<const int64_t> numbers) { return pixels_of(*kept, numbers); };
    return given;
}

}  // namespace

GivenImages given_images(const SampleOptions& o, const Checkpoint& checkpoint, Console& console) {
    const Settings& s = checkpoint.settings;
    const ReadProgress reading = [&](int64_t done, int64_t total) { console.progress("Reading images", done, total); };
    if (o.from == "buffer") return buffer_of(checkpoint);
    if (o.from == "test") return images_of(load_images(s, Split::test, reading), o.from, true);
    if (o.from == "train") return images_of(load_training_images(s, reading).train, o.from, true);
    return images_of(load_other_set(o.from, Split::test,
                                    {.channels = static_cast<int>(s.in_channels),
                                     .size = static_cast<int>(s.image_size),
                                     .skip_damaged = s.skip_damaged,
                                     .at_least = 1,
                                     .progress = reading,
                                     .tell = [&](const std::string& line) { console.message(line); }}),
                     o.from, false);
}

}  // namespace jem
