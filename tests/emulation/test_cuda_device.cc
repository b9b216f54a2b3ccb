// The CUDA device's own code: copies, recording, counting, and what it says where there is no GPU to be had.
#include "engine/device/cuda/cuda_device.h"

#include <doctest/doctest.h>

#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "engine/device/out_of_memory.h"
#include "tests/emulation/device.h"

namespace jem {
namespace {

using cuda_on_host::Settings;

std::vector<float> ramp(size_t count) {
    std::vector<float> values(count);
    std::iota(values.begin(), values.end(), 1.0f);
    return values;
}

std::vector<float> fetch(Device& device, const Buffer& buffer, const std::byte* from) {
    std::vector<float> values(buffer.bytes() / sizeof(float));
    device.download(values.data(), from, values.size() * sizeof(float));
    return values;
}

Array floats(Buffer& buffer) { return {buffer.data(), DType::f32, static_cast<int64_t>(buffer.bytes() / sizeof(float))}; }

// What make_cuda_device says of a machine; "" if it has nothing to say.
std::string refusal(const Settings& machine, CudaPrecision precision = CudaPrecision::f32, int ordinal = 0) {
    cuda_on_host::reset(machine);
    std::string text;
    try {
        make_cuda_device({.precision = precision, .nondeterministic = false, .ordinal = ordinal, .plan_cache = ""}, loop_plans(precision));
    } catch (const CudaUnavailable& e) {
        text = e.what();
    }
    CHECK(cuda_on_host::live_objects() == 0);
    CHECK(text.find('\n') == std::string::npos);
    CHECK(text.size() < 200);
    return text;
}

bool mentions(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("memory_of_the_emulated_gpu_is_zeroed_and_keeps_what_is_uploaded") {
    EmulatedDevice device(CudaPrecision::f32);
    const size_t count = (size_t{9} << 20) / sizeof(float) + 3;  // more than one staged piece
    const auto a = device->allocate(count * sizeof(float)), b = device->allocate(count * sizeof(float));
    CHECK(reinterpret_cast<uintptr_t>(a->data()) % 256 == 0);
    CHECK(fetch(*device, *a, a->data()) == std::vector<float>(count));
    const std::vector<float> values = ramp(count);
    device->upload(a->data(), values.data(), count * sizeof(float));
    device->copy(b->data(), a->data(), count * sizeof(float));
    CHECK(fetch(*device, *b, b->data()) == values);
    CHECK(device->allocate(0)->bytes() == 0);
}

TEST_CASE("values_read_back_arrive_with_their_own_ticket") {
    for (const uint64_t seed : {0, 1, 2}) {
        EmulatedDevice device(CudaPrecision::f32, {.seed = seed});
        const auto state = device->allocate(sizeof(IterationState));
        auto* on_device = reinterpret_cast<IterationState*>(state->data());
        constexpr int kIterations = 11;
        std::vector<IterationState> seen(kIterations);
        std::vector<int64_t> tickets;
        for (int i = 0; i < kIterations; ++i) {
            device->ops().begin_iteration(on_device, static_cast<uint32_t>(i + 1), 0.1, 1, 1);
            tickets.push_back(device->read_back(on_device, sizeof(IterationState)));
            if (i == 0) continue;
            device->take(tickets[static_cast<size_t>(i - 1)],
                         &seen[static_cast<size_t>(i - 1)]);  // one iteration late, as the trainer does
            CHECK(seen[static_cast<size_t>(i - 1)].iteration == static_cast<uint32_t>(i));
        }
        device->synchronize();
        CHECK(seen.back().iteration == 0);  // nobody has taken it
        device->take(tickets.back(), &seen.back());
        CHECK(seen.back().iteration == kIterations);
        CHECK_THROWS_AS(device->take(tickets[0], seen.data()), std::logic_error);
        CHECK_THROWS_AS(device->take(0, seen.data()), std::logic_error);
        CHECK_THROWS_AS(device->read_back(on_device, 5000), std::logic_error);
    }
}

TEST_CASE("a_replayed_graph_repeats_what_was_recorded_with_the_values_of_the_day") {
    for (const uint64_t seed : {0, 1, 2}) {
        EmulatedDevice device(CudaPrecision::f32, {.seed = seed});
        const auto sum = device->allocate(1003 * sizeof(float)), x = device->allocate(1003 * sizeof(float));
        const std::vector<float> values = ramp(1003);
        device->upload(x->data(), values.data(), x->bytes());
        const auto queue = [&] {
            device->ops().accumulate(floats(*sum), floats(*x));
            device->copy(x->data(), sum->data(), x->bytes());
        };
        const int64_t before = device->launches();
        const auto graph = capture(*device, queue);
        CHECK(graph->launches() == 2);
        CHECK(fetch(*device, *sum, sum->data()) == std::vector<float>(1003));  // recorded, not run
        graph->replay();
        graph->replay();
        CHECK(device->launches() == before + 6);
        const std::vector<float> replayed = fetch(*device, *sum, sum->data());
        device->ops().fill_zero(floats(*sum));
        device->upload(x->data(), values.data(), x->bytes());
        queue();
        queue();
        CHECK(fetch(*device, *sum, sum->data()) == replayed);
        CHECK(replayed[2] == 6);
    }
}

TEST_CASE("what_must_not_happen_while_recording_throws_and_the_device_goes_on") {
    EmulatedDevice device(CudaPrecision::f32);
    const auto buffer = device->allocate(4096);
    const auto graph = capture(*device, [&] { device->ops().fill_zero(floats(*buffer)); });
    float value = 0;
    const std::vector<std::function<void()>> forbidden = {
        [&] { device->allocate(16); },
        [&] { device->plan_convolution({.in_channels = 3, .out_channels = 4, .height = 5, .width = 5}, {.batches = {1}}); },
        [&] { device->plan_linear(3, 4, {1}); },
        [&] { device->begin_capture(); },
        [&] { device->begin_dry_run(); },
        [&] { device->upload(buffer->data(), &value, 4); },
        [&] { device->download(&value, buffer->data(), 4); },
        [&] { device->read_back(buffer->data(), 4); },
        [&] { device->take(1, &value); },
        [&] { device->synchronize(); },
        [&] { graph->replay(); }};
    for (size_t i = 0; i < forbidden.size(); ++i) {
        CAPTURE(i);
        CHECK_THROWS_AS(capture(*device, forbidden[i]), CaptureError);
        CHECK_NOTHROW(capture(*device, [&] { device->ops().fill_zero(floats(*buffer)); })->replay());
        CHECK_NOTHROW(device->synchronize());
    }
    CHECK_THROWS_AS(device->end_capture(), CaptureError);
}

TEST_CASE("a_recording_that_fails_on_the_side_queue_leaves_nothing_to_wait_for") {
    EmulatedDevice device(CudaPrecision::f32, {}, LoopFusion::none, true);
    const auto from = device->allocate(64), to = device->allocate(64);
    const std::vector<float> values = ramp(16);
    device->upload(from->data(), values.data(), 64);
    CHECK_THROWS_AS(capture(*device,
                            [&] {
                                device->begin_side();
                                device->copy(to->data(), from->data(), 64);
                                device->end_side();
                                throw std::runtime_error("lost");
                            }),
                    std::runtime_error);
    const auto graph = capture(*device, [&] {
        device->join_side();
        device->begin_side();
        device->copy(to->data(), from->data(), 64);
        device->end_side();
        device->join_side();
    });
    graph->replay();
    CHECK(fetch(*device, *to, to->data()) == values);
}

TEST_CASE("a_buffer_freed_while_recording_does_no_harm_later") {
    EmulatedDevice device(CudaPrecision::f32);
    const auto kept = device->allocate(64);
    CHECK_THROWS(capture(*device, [&] {
        device->ops().fill_zero(floats(*kept));
        throw std::runtime_error("a bug of the caller");
    }));
    device->ops().fill_zero(floats(*kept));
    CHECK_NOTHROW(device->synchronize());
}

TEST_CASE("a_dry_run_counts_and_touches_nothing") {
    EmulatedDevice device(CudaPrecision::f32);
    const uint64_t executed = cuda_on_host::launches();
    auto* nowhere = reinterpret_cast<std::byte*>(size_t{1} << 46);
    device->begin_dry_run();
    device->ops().fill_zero({nowhere, DType::f32, 1000});
    device->ops().fill_zero({nowhere, DType::f32, 1000});
    device->copy(nowhere, nowhere, 100);
    const WorkReport report = device->end_dry_run();
    device->synchronize();
    CHECK(cuda_on_host::launches() == executed);
    CHECK(report.at("copy").launches == 1);
    CHECK(report.at("copy").bytes == 200);
    double launches = 0;
    for (const auto& [label, row] : report) launches += static_cast<double>(row.launches);
    CHECK(launches == 3);
    CHECK(device->launches() == 3);
}

TEST_CASE("a_profile_names_what_ran_and_takes_its_time") {
    EmulatedDevice device(CudaPrecision::f32);
    const auto buffer = device->allocate(size_t{1} << 20);
    device->begin_profile();
    for (int i = 0; i < 3; ++i) device->ops().fill_zero(floats(*buffer));
    const WorkReport report = device->end_profile();
    REQUIRE(report.size() == 1);
    const WorkRow& row = report.begin()->second;
    CHECK(row.launches == 3);
    CHECK(row.seconds > 0);
    CHECK(row.bytes > 0);
}

TEST_CASE("too_little_memory_is_said_with_the_need_and_what_lowers_it") {
    EmulatedDevice device(CudaPrecision::f32, {.memory_bytes = size_t{3} << 30, .used_by_others = size_t{2} << 30});
    std::string text;
    try {
        device->allocate(size_t{5} << 29);
    } catch (const OutOfMemory& e) {  // no InputError: nothing was wrong with the command line
        text = e.what();
    }
    CAPTURE(text);
    CHECK(mentions(text, "2.5 GiB of GPU memory are needed"));
    CHECK(mentions(text, "1.0 GiB of 3.0 GiB are free"));
    CHECK(mentions(text, "something else uses the GPU"));
    CHECK(mentions(text, "--batch-size"));
    CHECK_NOTHROW(device->allocate(1000));
}

TEST_CASE("an_error_on_the_gpu_is_thrown_by_the_next_call_that_waits") {
    auto device = std::make_unique<EmulatedDevice>(CudaPrecision::f32);
    const auto buffer = (*device)->allocate(4096);
    (*device)->ops().fill_zero({buffer->data(), DType::f32, 100000});
    CHECK_THROWS_AS((*device)->synchronize(), std::runtime_error);
    CHECK(mentions(cuda_on_host::last_report(), "outside device allocation"));
    cuda_on_host::reset({});  // nothing can be freed on a broken device
}

TEST_CASE("where_there_is_no_gpu_to_be_had_one_line_says_why") {
    CHECK(refusal({}).empty());
    CHECK(mentions(refusal({.driver = 0}), "no NVIDIA driver"));
    CHECK(mentions(refusal({.driver = 12080}), "driver is for CUDA 12.8"));
    CHECK(mentions(refusal({.devices = 0}), "shows no GPU"));
    CHECK(mentions(refusal({.busy = true}), "Another process"));
    CHECK(mentions(refusal({.sm = 70}), "sm_75"));
    CHECK(mentions(refusal({.sm = 86, .kernels_for = 90}), "no kernels for Emulated GPU (it was built for other GPUs than sm_86)"));
    CHECK(refusal({.sm = 86, .kernels_for = 86}).empty());
    CHECK(mentions(refusal({.sm = 75}, CudaPrecision::bf16), "has no bf16"));
    CHECK(mentions(refusal({.sm = 75}, CudaPrecision::tf32), "has no tf32"));
    CHECK(refusal({.sm = 75}).empty());
    CHECK(mentions(refusal({.devices = 2}, CudaPrecision::f32, 2), "shows 2"));
    CHECK(refusal({.devices = 2}, CudaPrecision::f32, 1).empty());
}

TEST_CASE("visible_gpus_are_listed_or_it_is_said_why_there_are_none") {
    std::string why;
    cuda_on_host::reset({.sm = 90, .memory_bytes = size_t{80} << 30, .devices = 2});
    const std::vector<std::string> gpus = visible_gpus(why);
    CHECK(gpus == std::vector<std::string>(2, "Emulated GPU, 80.0 GiB, sm_90"));
    CHECK(why.empty());
    cuda_on_host::reset({.driver = 0});
    CHECK(visible_gpus(why).empty());
    CHECK(mentions(why, "no NVIDIA driver"));
}

}  // namespace jem
