#include "data/cifar.h"

#include <fstream>
#include <string>

#include "data/data_file.h"
#include "data/input_error.h"

namespace jem {
namespace {

constexpr size_t kPlane = 32 * 32;
constexpr size_t kChannels = 3;

/// `label_limits[i]`: the number of classes of a record's i-th label byte; the last one is kept.
void append_file(std::vector<uint8_t>& pixels, std::vector<int32_t>& labels, const std::filesystem::path& file,
                 const std::vector<int>& label_limits) {
    std::ifstream stream;
    const uint64_t file_bytes = open_data_file(stream, file);
    const size_t num_labels = label_limits.size();
    const size_t record_bytes = num_labels + kChannels * kPlane;
    const uint64_t count = file_bytes / record_bytes;
    if (count == 0 || file_bytes % record_bytes != 0) {
        throw damaged_data_file(file, file_bytes,
                                "the file ends here, expected a whole number of records of " + std::to_string(record_bytes) + " bytes");
    }
    const size_t first = labels.size();
    labels.resize(first + count);
    pixels.resize((first + count) * kPlane * kChannels);
    std::vector<uint8_t> record(record_bytes);
    for (uint64_t i = 0; i < count; ++i) {
        if (!stream.read(reinterpret_cast<char*>(record.data()), static_cast<std::streamsize>(record_bytes))) {
            throw damaged_data_file(file, i * record_bytes, "the record cannot be read, expected " + std::to_string(count) + " records");
        }
        for (size_t j = 0; j < num_labels; ++j) {
            if (record[j] >= label_limits[j]) {
                throw damaged_data_file(file, i * record_bytes + j,
                                        "label " + std::to_string(record[j]) + ", expected 0 to " + std::to_string(label_limits[j] - 1));
            }
        }
        labels[first + i] = record[num_labels - 1];
        const uint8_t* planes = record.data() + num_labels;          // [C,H,W]
        uint8_t* image = &pixels[(first + i) * kPlane * kChannels];  // [H,W,C]
        for (size_t p = 0; p < kPlane; ++p) {
            for (size_t c = 0; c < kChannels; ++c) image[p * kChannels + c] = planes[c * kPlane + p];
        }
    }
}

}  // namespace

void append_cifar10_file(std::vector<uint8_t>& pixels, std::vector<int32_t>& labels, const std::filesystem::path& file) {
    append_file(pixels, labels, file, {10});
}

void append_cifar100_file(std::vector<uint8_t>& pixels, std::vector<int32_t>& labels, const std::filesystem::path& file) {
    append_file(pixels, labels, file, {20, 100});
}

}  // namespace jem
