// Which real images get the input noise.
#include <doctest/doctest.h>

#include "engine/training/iteration.h"
#include "models/wide_resnet.h"
#include "tests/check.h"
#include "tests/engine/training/golden.h"
#include "tests/engine/training/job.h"

namespace jem {
namespace {

struct Batches {
    Values labelled, positive;
};

Batches draw(double noise, InputNoiseOn on) {
    Settings s = small_job();
    s.input_noise = noise;
    s.input_noise_on = on;
    ImageSet set;
    set.name = "mnist";
    set.channels = static_cast<int>(s.in_channels);
    set.height = set.width = static_cast<int>(s.image_size);
    set.num_classes = static_cast<int>(s.num_classes);
    const int64_t count = 4 * s.batch_size, pixels = s.in_channels * s.image_size * s.image_size;
    for (int64_t i = 0; i < count; ++i) {
        set.labels.push_back(static_cast<int32_t>(i % s.num_classes));
        set.pixels.insert(set.pixels.end(), static_cast<size_t>(pixels), static_cast<uint8_t>(100 + i));
    }
    const auto device = make_cpu_device({.threads = 1});
    WideResNet network(wide_resnet_settings(s));
    Memory memory(*device);
    TrainingIteration iteration(*device, memory, network, s, TrainingIteration::source_of(set));
    iteration.plan();
    memory.allocate();
    iteration.upload(set);
    iteration.begin(0, 0, 0);
    iteration.run("draw");
    return {download_values(*device, iteration.labelled().images()), download_values(*device, iteration.real().images())};
}

}  // namespace

TEST_CASE("input_noise_on_generative_leaves_the_labelled_images_alone") {
    const Batches none = draw(0, InputNoiseOn::both), generative = draw(0.1, InputNoiseOn::generative),
                  both = draw(0.1, InputNoiseOn::both);
    CHECK(generative.labelled == none.labelled);
    CHECK(generative.positive != none.positive);
    CHECK(both.labelled != none.labelled);
    CHECK(both.positive == generative.positive);
}

}  // namespace jem
