// Timed plans: the file that all runs share, and the one that a run keeps.
#include "engine/device/choices.h"

#include "tests/fuzz/target.h"

JEM_FUZZ_TARGET(bytes) {
    using namespace jem;
    const std::filesystem::path file = fuzz::file_of(bytes);
    Choices shared("gpu | 1", file.string());
    shared.find("conv");
    Choices kept("gpu | 1", "");
    kept.keep(std::string(fuzz::text_of(bytes)), "a run");
    kept.find("conv");
    kept.is_gone("conv");
    const std::string text = kept.text();
    Choices again("gpu | 1", "");
    again.keep(text, "a run");
    fuzz::require(again.text() == text && again.departure().empty());
    shared.remember("new", {.choice = "engine", .seconds = 1});
    fuzz::require(shared.save());
    fuzz::require(Choices("gpu | 1", file.string()).find("new").has_value());
}
