// The binary versions of CIFAR. The first byte chooses which.
#include "data/cifar.h"

#include "tests/fuzz/target.h"

JEM_FUZZ_TARGET(bytes) {
    using namespace jem;
    if (bytes.empty()) return;
    const bool fine = (bytes[0] & 1) != 0;
    const std::filesystem::path file = fuzz::file_of(bytes.subspan(1));
    std::vector<uint8_t> pixels;
    std::vector<int32_t> labels;
    if (!fuzz::reads([&] { (fine ? append_cifar100_file : append_cifar10_file)(pixels, labels, file); })) return;
    fuzz::require(!labels.empty() && pixels.size() == labels.size() * 3072);
    for (const int32_t label : labels) fuzz::require(label >= 0 && label < (fine ? 100 : 10));
}
