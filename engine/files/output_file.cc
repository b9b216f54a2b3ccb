#include "engine/files/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "data/input_error.h"

namespace jem {
namespace {

using std::filesystem::path;

constexpr int kMostLinks = 40;            // as many as the system follows
constexpr size_t kLongestFileName = 255;  // bytes, of all customary file systems
constexpr const char* kTemporary = ".tmp";

std::string reason(int error) { return std::generic_category().message(error); }

[[noreturn]] void throw_write_error(const path& file, int error) {
    const std::string problem = "cannot write '" + file.string() + "' (" + reason(error) + "). ";
    switch (error) {
        case EACCES:
        case EPERM:
        case EROFS:
        case ENOENT:
        case ENOTDIR:
        case EISDIR:
        case ELOOP:
        case ENAMETOOLONG:
        case ENXIO:  // a socket, or a device that is not there
            throw InputError(problem + "Give a path in a folder that exists and may be written.");
        case EPIPE:
            throw std::runtime_error(problem + "Its reader has gone: start it again.");
        default:
            throw std::runtime_error(problem + "Check the disk's free space and state.");
    }
}

/// What a link leads to, whether that exists or not; anything else as it is.
path link_target(const path& file) {
    path target = file;
    for (int i = 0; i < kMostLinks; ++i) {
        std::error_code error;
        const path next = std::filesystem::read_symlink(target, error);
        if (error) return target;
        target = target.parent_path() / next;
    }
    throw_write_error(file, ELOOP);
}

path folder_of(const path& file) { return file.has_parent_path() ? file.parent_path() : "."; }

bool same(const struct stat& a, const struct stat& b) { return a.st_dev == b.st_dev && a.st_ino == b.st_ino; }

bool same_file(const path& a, const path& b) {
    struct stat of_a {
    }, of_b{};
    const bool a_is_there = stat(a.c_str(), &of_a) == 0, b_is_there = stat(b.c_str(), &of_b) == 0;
    if (a_is_there || b_is_there) return a_is_there && b_is_there && same(of_a, of_b);
    const path real_a = link_target(a), real_b = link_target(b);
    std::error_code error_a, error_b;
    const path folder_a = std::filesystem::canonical(folder_of(real_a), error_a);
    const path folder_b = std::filesystem::canonical(folder_of(real_b), error_b);
    return !error_a && !error_b && folder_a == folder_b && real_a.filename() == real_b.filename();
}

bool is_character_device(const path& file) {
    std::error_code error;
    return std::filesystem::is_character_file(file, error);
}

void check_output(const NamedPath& output) {
    const std::string problem = output.flag + ": cannot write '" + output.path.string() + "' (";
    struct stat there {};
    if (stat(output.path.c_str(), &there) == 0) {
        if (S_ISDIR(there.st_mode)) throw InputError(problem + "it is a folder). Give the name of a file.");
        if (!S_ISREG(there.st_mode)) {
            if (access(output.path.c_str(), W_OK) != 0) throw InputError(problem + reason(errno) + "). Choose what can be written.");
            return;
        }
    } else if (errno != ENOENT && errno != ENOTDIR) {
        throw InputError(problem + reason(errno) + "). Choose another name.");
    }
    const path folder = folder_of(link_target(output.path));
    if (stat(folder.c_str(), &there) != 0 && errno != ENOENT && errno != ENOTDIR)
        throw InputError(problem + reason(errno) + "). Choose another folder.");
    std::error_code error;
    if (!std::filesystem::is_directory(folder, error))
        throw InputError(problem + "there is no folder " + folder.string() + "). Create it, or choose another.");
    if (access(folder.c_str(), W_OK | X_OK) != 0) throw InputError(problem + reason(errno) + "). Choose a folder that can be written.");
}

/// The process number in "NAME.NUMBER.tmp", 0 where there is none.
int process_of(const std::string& temporary) {
    const std::string name = temporary.substr(0, temporary.rfind(kTemporary));
    const size_t dot = name.rfind('.');
    int number = 0;
    if (dot == std::string::npos) return 0;
    const auto [end, error] = std::from_chars(name.data() + dot + 1, name.data() + name.size(), number);
    return error == std::errc() && end == name.data() + name.size() && number > 0 ? number : 0;
}

}  // namespace

OutputFile::OutputFile(const path& path) : path_(path) {
    struct stat there {
    }, out{};
    const bool exists = stat(path.c_str(), &there) == 0;
    if (!exists && errno != ENOENT) throw_write_error(path_, errno);
    if (exists && S_ISDIR(there.st_mode)) throw_write_error(path_, EISDIR);
    if (exists && fstat(STDOUT_FILENO, &out) == 0 && same(there, out)) {
        std::fflush(stdout);
        descriptor_ = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    } else if (exists && !S_ISREG(there.st_mode)) {
        descriptor_ = open(path.c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC);
    } else {
        target_ = link_target(path);
        const std::string ending = "." + std::to_string(getpid()) + kTemporary;
        const std::string name = target_.filename().string();
        if (name.size() > kLongestFileName) throw_write_error(path_, ENAMETOOLONG);
        temporary_ = folder_of(target_) / (name.substr(0, kLongestFileName - ending.size()) + ending);
        unlink(temporary_.c_str());  // of a dead process that had the same number
        descriptor_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor_ >= 0 && exists) [[maybe_unused]]
            const int ignored = fchmod(descriptor_, there.st_mode & 07777);
    }
    if (descriptor_ < 0) {
        temporary_.clear();
        throw_write_error(path_, errno);
    }
}

OutputFile::~OutputFile() {
    if (descriptor_ >= 0) close(descriptor_);
    if (!temporary_.empty()) unlink(temporary_.c_str());
}

void OutputFile::write(const void* data, size_t num_bytes) {
    const char* next = static_cast<const char*>(data);
    while (num_bytes > 0) {
        const ssize_t written = ::write(descriptor_, next, std::min(num_bytes, size_t{1} << 30));
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) throw_write_error(path_, errno);
        next += written;
        num_bytes -= static_cast<size_t>(written);
    }
}

void OutputFile::commit() {
    // what is no file on a disk cannot be synced
    if (fsync(descriptor_) != 0 && !temporary_.empty()) throw_write_error(path_, errno);
    if (close(std::exchange(descriptor_, -1)) != 0) throw_write_error(path_, errno);
    if (temporary_.empty()) return;
    if (rename(temporary_.c_str(), target_.c_str()) != 0) throw_write_error(path_, errno);
    temporary_.clear();
    // The rename itself survives a power cut only once the folder is on disk. Some file systems cannot sync a folder: their loss.
    const int folder = open(folder_of(target_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return;
    const int error = fsync(folder) == 0 ? 0 : errno;
    close(folder);
    if (error == EIO) throw_write_error(path_, error);
}

void write_file(const path& path, std::string_view content) {
    OutputFile file(path);
    file.write(content.data(), content.size());
    file.commit();
}

void append_file(const path& path, std::string_view content) {
    const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (descriptor < 0) throw_write_error(path, errno);
    struct stat before {};
    int error = fstat(descriptor, &before) == 0 ? 0 : errno;
    while (error == 0 && !content.empty()) {
        const ssize_t written = ::write(descriptor, content.data(), content.size());
        if (written >= 0)
            content.remove_prefix(static_cast<size_t>(written));
        else if (errno != EINTR)
            error = errno;
    }
    if (error != 0) [[maybe_unused]]
        const int ignored = ftruncate(descriptor, before.st_size);
    if (close(descriptor) != 0 && error == 0) error = errno;
    if (error != 0) throw_write_error(path, error);
}

void link_file(const path& from, const path& second) {
    const path temporary = second.string() + "." + std::to_string(getpid()) + kTemporary;
    unlink(temporary.c_str());
    if (link(from.c_str(), temporary.c_str()) == 0) {
        const int error = rename(temporary.c_str(), second.c_str()) == 0 ? 0 : errno;
        unlink(temporary.c_str());  // two names of one file: renaming one to the other leaves both
        if (error != 0) throw_write_error(second, error);
        return;
    }
    OutputFile copy(second);
    std::ifstream in(from, std::ios::binary);
    std::vector<char> block(size_t{1} << 20);
    while (in.read(block.data(), static_cast<std::streamsize>(block.size())) || in.gcount() > 0)
        copy.write(block.data(), static_cast<size_t>(in.gcount()));
    if (!in.eof()) throw_write_error(second, EIO);
    copy.commit();
}

std::string read_file(const path& path) {
    const auto fail = [&](int error) {
        throw InputError("cannot read '" + path.string() + "' (" + reason(error) + "). Check the path and its permissions.");
    };
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) fail(errno);
    std::string content;
    char block[1 << 16];
    ssize_t got = 0;
    while ((got = read(descriptor, block, sizeof block)) != 0) {
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) break;
        content.append(block, static_cast<size_t>(got));
    }
    const int error = errno;
    close(descriptor);
    if (got < 0) fail(error);
    return content;
}

void check_outputs(const std::vector<NamedPath>& outputs, const std::vector<NamedPath>& inputs) {
    for (size_t i = 0; i < outputs.size(); ++i) {
        const NamedPath& output = outputs[i];
        if (output.path.empty()) continue;
        check_output(output);
        for (const NamedPath& input : inputs)
            if (!input.path.empty() && same_file(output.path, input.path))
                throw InputError(output.flag + " would overwrite " + input.flag + " ('" + output.path.string() + "' and '" +
                                 input.path.string() + "' are one file). Give another name.");
        for (size_t j = 0; j < i; ++j)
            if (!outputs[j].path.empty() && !is_character_device(output.path) && same_file(output.path, outputs[j].path))
                throw InputError(output.flag + " would overwrite " + outputs[j].flag + " ('" + output.path.string() + "' and '" +
                                 outputs[j].path.string() + "' are one file). Give each a name of its own.");
    }
}

void create_folder(const path& folder) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) throw InputError("Cannot create " + folder.string() + " (" + error.message() + "). Choose a folder that can be written.");
    if (access(folder.c_str(), W_OK | X_OK) != 0)
        throw InputError("Cannot write into " + folder.string() + " (" + reason(errno) + "). Choose a folder that can be written.");
}

void remove_dead_temporaries(const path& folder, const std::vector<std::string>& names) {
    std::error_code error;
    std::vector<path> dead;
    for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
        const std::string name = entry->path().filename().string();
        const bool own = std::any_of(names.begin(), names.end(), [&](const std::string& start) { return name.starts_with(start); });
        if (!own || !name.ends_with(kTemporary)) continue;
        const int process = process_of(name);
        const bool alive = process != 0 && process != getpid() && (kill(process, 0) == 0 || errno == EPERM);
        if (!alive) dead.push_back(entry->path());
    }
    for (const path& file : dead) unlink(file.c_str());
}

}  // namespace jem
