#include "data/is_there.h"

#include <system_error>

#include "data/input_error.h"

namespace jem {

bool is_there(const std::filesystem::path& path) {
    std::error_code error;
    const std::filesystem::file_status status = std::filesystem::status(path, error);
    if (status.type() == std::filesystem::file_type::none)
        throw InputError("cannot look at '" + path.string() + "' (" + error.message() + "). Check the path and its permissions.");
    return status.type() != std::filesystem::file_type::not_found;
}

}  // namespace jem
