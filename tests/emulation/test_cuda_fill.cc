// The first fill of the replay buffer by the CUDA device's own code.
#include <doctest/doctest.h>

#include "engine/network/parameters.h"
#include "engine/sampling/image_store.h"
#include "engine/sampling/replay_buffer.h"
#include "tests/check.h"
#include "tests/emulation/device.h"

namespace jem {
namespace {

constexpr int kSide = 8, kClasses = 4;

Values filled(Device& device, const ImageSet& set, StartForm form, int64_t size) {
    const bool one_class = form == StartForm::gaussian;
    Memory memory(device);
    ImageStore store(
        device, memory,
        {.channels = 1, .height = kSide, .width = kSide, .num_classes = kClasses, .num_train = 0, .num_test = 0, .flip = false},
        set.count(), largest_class_of(set));
    if (one_class) store.merge_classes();
    ReplayBuffer buffer(device, memory,
                        {.size = size,
                         .chains = 6,
                         .pixels = kSide * kSide,
                         .classes = one_class ? 1 : kClasses,
                         .form = form,
                         .largest_class = store.largest_class(),
                         .seed = 7});
    const Slot slot = memory.keep("scalars", "state", sizeof(IterationState));
    const auto state = [&] { return reinterpret_cast<IterationState*>(memory.at(slot)); };
    memory.plan([&] { buffer.plan_fill(store.view(), state()); });
    memory.allocate();
    store.upload(set);
    device.ops().begin_iteration(state(), 0, 0, 1, 1);
    buffer.fill(store.view(), state(), [](int64_t) {});
    return download_values(device, buffer.images());
}

}  // namespace

TEST_CASE("the_replay_buffer_is_filled_on_the_emulated_gpu_as_on_the_cpu") {
    constexpr Tolerance kRoundings = {.absolute = 3e-5};  // of draws and of sums of up to 331 products, in another order
    ImageSet set;
    set.name = "made-up";
    set.channels = 1;
    set.height = set.width = kSide;
    set.num_classes = kClasses;
    TestData data(5);
    for (const auto& [label, count] : {std::pair{0, 30}, std::pair{2, 1}, std::pair{3, 300}})  // 300: more than a block; 1 has none
        for (int i = 0; i < count; ++i) {
            set.labels.push_back(label);
            for (int p = 0; p < kSide * kSide; ++p) set.pixels.push_back(static_cast<uint8_t>(20 * label + data.index(150)));
        }
    for (const StartForm form : {StartForm::informative, StartForm::gaussian})
        for (const int64_t size : {7, 40}) {
            CAPTURE(size);
            CAPTURE(static_cast<int>(form));
            const auto cpu = make_cpu_device({.threads = 1});
            const Values want = filled(*cpu, set, form, size);
            for (const CudaPrecision precision : {CudaPrecision::f32, CudaPrecision::bf16}) {
                EmulatedDevice gpu(precision);
                check_close("buffer", filled(*gpu, set, form, size), want, kRoundings);
            }
        }
}

}  // namespace jem
