// The one way in which the engine and its program write files.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace jem {

/// A file that is being written. What is there already decides how:
/// - nothing, or a regular file: through a temporary file beside it (its name carries the process number), synced and renamed, so that
///   a crash at any moment leaves the old file or the new one; an old file's permissions stay;
/// - a link: the same for the file that it leads to, the link stays;
/// - a device, a FIFO or this process's own stdout: opened and written to.
/// InputError where the folder is missing or may not be written, std::runtime_error for anything else (a full disk), both with the
/// system's own reason; then the old file is intact and no temporary is left.
class OutputFile {
public:
    explicit OutputFile(const std::filesystem::path& path);
    ~OutputFile();
    OutputFile(const OutputFile&) = delete;
    OutputFile& operator=(const OutputFile&) = delete;

    void write(const void* data, size_t num_bytes);
    /// Makes what was written the file. Without it nothing has happened, but on a device.
    void commit();

private:
    std::filesystem::path path_;       // as it was given, for errors
    std::filesystem::path target_;     // what a link leads to
    std::filesystem::path temporary_;  // empty once it is renamed, or where there is none
    int descriptor_ = -1;
};

/// Writes a whole file by way of OutputFile.
void write_file(const std::filesystem::path& path, std::string_view content);

/// Adds to the end of a file, which is created where there is none: all of it, or, where that fails (InputError and std::runtime_error as
/// above), nothing.
void append_file(const std::filesystem::path& path, std::string_view content);

/// Gives a file a second name, where the file system can, else makes a copy; what had that name is replaced at once. Errors as above.
void link_file(const std::filesystem::path& path, const std::filesystem::path& second);

/// The whole content of a file. InputError, with the system's reason, where it cannot be read.
std::string read_file(const std::filesystem::path& path);

/// A path that a person gave, and by which flag.
struct NamedPath {
    std::string flag;
    std::filesystem::path path;  // empty: none was given
};

/// Before anything is computed: InputError for an output that is a folder, lies in none or may not be written, is one of the inputs, or is
/// another output as well (by whatever name or link).
void check_outputs(const std::vector<NamedPath>& outputs, const std::vector<NamedPath>& inputs);

/// Creates a folder, and those above it, unless it is there. InputError where it cannot be created, or not be written.
void create_folder(const std::filesystem::path& folder);

/// Removes temporaries that OutputFile left in a folder when their process was killed, of files whose names begin with one of these.
void remove_dead_temporaries(const std::filesystem::path& folder, const std::vector<std::string>& names);

}  // namespace jem
