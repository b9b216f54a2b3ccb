#pragma once

#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace jem {

/// The user's input is wrong: a file, a folder, a name or a value. main catches it and exits with code 2.
/// The text reads "<problem> (<why>). <what to do>".
class InputError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// The error of a data file whose content is not what its format asks for. `offset` is the byte at which that shows; `why` says what was
/// found and what was expected.
inline InputError damaged_data_file(const std::filesystem::path& file, uint64_t offset, const std::string& why) {
    return InputError("cannot use data file '" + file.string() + "' (at byte " + std::to_string(offset) + ": " + why +
                      "). Check --data and --data-dir, or get the file again.");
}

}  // namespace jem
