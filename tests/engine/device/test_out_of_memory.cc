#include "engine/device/out_of_memory.h"

#include <doctest/doctest.h>

#include <memory>
#include <string>

#include "data/input_error.h"
#include "engine/device/device.h"

namespace jem {

TEST_CASE("too_little_memory_is_no_wrong_usage_and_says_the_need_and_what_lowers_it") {
    for (const auto& device : {make_cpu_device({.threads = 1}), make_reference_device(DType::f64)}) {
        CAPTURE(device->name());
        std::string text;
        try {
            device->allocate(size_t{1} << 60);
        } catch (const InputError&) {
        } catch (const OutOfMemory& e) {
            text = e.what();
        }
        CAPTURE(text);
        CHECK(text.find("Out of memory (1073741824.0 GiB") == 0);
        CHECK(text.find("are needed") != std::string::npos);
        CHECK(text.find("Lower --batch-size") != std::string::npos);
        CHECK(device->allocate(1000)->bytes() == 1000);
    }
}

TEST_CASE("bytes_are_said_in_the_unit_that_fits_them") {
    CHECK(text_of_bytes(0) == "0 MiB");
    CHECK(text_of_bytes(size_t{613} << 20) == "613 MiB");
    CHECK(text_of_bytes(size_t{5} << 29) == "2.5 GiB");
}

}  // namespace jem
