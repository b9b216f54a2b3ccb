#include "data/data_file.h"

#include <cerrno>
#include <system_error>

#include "data/input_error.h"

namespace jem {

uint64_t open_data_file(std::ifstream& stream, const std::filesystem::path& file) {
    std::error_code error;
    const uint64_t bytes = std::filesystem::file_size(file, error);  // fails for folders, too
    if (error) throw InputError("cannot read data file '" + file.string() + "' (" + error.message() + "). Check that it may be read.");
    errno = 0;
    stream.open(file, std::ios::binary);
    if (!stream)
        throw InputError("cannot read data file '" + file.string() + "' (" + std::generic_category().message(errno) +
                         "). Check its permissions.");
    return bytes;
}

}  // namespace jem
