#include "engine/network/file_tensors.h"

#include <doctest/doctest.h>

#include <bit>
#include <vector>

#include "tests/on_device.h"

namespace jem {
namespace {

constexpr Extent kMany{.n = 60, .c = 5, .h = 33, .w = 31, .block = 5};  // more than a piece, whose ends are no images' ends

Array flat(const Tensor& t) { return {t.data, t.type, t.count()}; }

std::vector<int64_t> shape_of(const Extent& e) { return {e.n, e.c, e.h, e.w}; }

Values values_of(const FileTensor& tensor, int64_t first, int64_t count) {
    Values out(static_cast<size_t>(count));
    read_values(tensor, first, std::span(out));
    return out;
}

FileTensor bf16_tensor(const Values& values, const std::vector<int64_t>& shape) {
    std::vector<uint16_t> halves;
    for (const double v : values) halves.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(v)) >> 16));
    const auto bytes = std::as_bytes(std::span(halves));
    return make_file_tensor(FileType::bf16, {bytes.begin(), bytes.end()}, shape);
}

TEST_CASE("a_tensor_reaches_a_device_and_comes_back_in_the_order_of_files") {
    for (const Extent& e :
         {kMany, Extent{.n = 3, .c = 1, .h = 2, .w = 2, .block = 1}, Extent{.n = 2, .c = 4, .h = 1, .w = 1, .block = 4}}) {
        INFO(e.text());
        const Values values = TestData(1).uniforms(e.count(), -2, 2);
        on_every_device([&](OnDevice& m) {
            const Tensor to = m.tensor(e, Values(values.size()));
            upload_tensor(m.device(), flat(to), make_file_tensor(values, shape_of(e)));
            check_equal("on the device", m.read(to), values);
            const FileTensor back = tensor_on(m.device(), flat(to), shape_of(e));
            CHECK(back.type == (m.f64() ? FileType::f64 : FileType::f32));
            check_equal("in a file", values_of(back, 0, e.count()), values);
        });
    }
}

TEST_CASE("a_tensor_of_other_dimensions_keeps_its_order") {
    const Values values = TestData(2).uniforms(300000, -2, 2);
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{300000}, {3000, 100}, {30, 100, 100}})
        on_every_device([&](OnDevice& m) {
            const Array to = m.unwritten(300000);
            upload_tensor(m.device(), to, make_file_tensor(values, shape));
            check_equal("on the device", m.read(to), values);
            check_equal("in a file", values_of(tensor_on(m.device(), to, shape), 0, 300000), values);
        });
    // noise of several steps: each [C, H, W] for itself
    const Extent steps{.n = 6, .c = 2, .h = 3, .w = 1, .block = 2};
    const Values noise = TestData(3).uniforms(steps.count(), -2, 2);
    on_every_device([&](OnDevice& m) {
        const Tensor to = m.tensor(steps, Values(noise.size()));
        upload_tensor(m.device(), flat(to), make_file_tensor(noise, {2, 3, 2, 3, 1}));
        check_equal("five dimensions", m.read(to), noise);
    });
}

TEST_CASE("a_tensor_on_a_device_reads_the_same_in_any_pieces") {
    const Extent e{.n = 4, .c = 3, .h = 2, .w = 5, .block = 3};
    const Values values = TestData(4).uniforms(e.count(), -2, 2);
    on_every_device([&](OnDevice& m) {
        const FileTensor tensor = tensor_on(m.device(), flat(m.tensor(e, values)), shape_of(e));
        for (int64_t first = 0; first < e.count(); ++first)
            for (int64_t count = 0; first + count <= e.count(); ++count) {
                const Values want(values.begin() + first, values.begin() + first + count);
                if (values_of(tensor, first, count) != want) FAIL_CHECK("elements " << first << " to " << first + count);
            }
    });
}

TEST_CASE("a_tensor_is_converted_to_the_device_s_type_alone") {
    const Extent e{.n = 2, .c = 3, .h = 2, .w = 2, .block = 3};
    Values fine(static_cast<size_t>(e.count()));
    for (size_t i = 0; i < fine.size(); ++i) fine[i] = 1.0 / (3.0 + static_cast<double>(i));  // none of them is an f32
    const Values coarse(fine.size(), -1.5);
    on_every_device([&](OnDevice& m) {
        const Tensor to = m.tensor(e, coarse);
        upload_tensor(m.device(), flat(to), make_file_tensor(fine, shape_of(e)));
        Values want = fine;
        if (!m.f64())
            for (double& v : want) v = static_cast<float>(v);
        check_equal("f64", m.read(to), want);
        upload_tensor(m.device(), flat(to), bf16_tensor(coarse, shape_of(e)));
        check_equal("bf16", m.read(to), coarse);
        CHECK_THROWS_AS(upload_tensor(m.device(), flat(to).slice(0, 5), make_file_tensor(fine, shape_of(e))), std::logic_error);
    });
}

}  // namespace
}  // namespace jem
