// The end of a file of lines that another process is writing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace jem {

/// Reads from near the file's end and then what is added. Memory is bounded, whatever the file holds. A line counts once its end is there.
/// A file that was replaced, or became shorter, is read anew; one that is missing for a moment is waited for.
class LogTail {
public:
    /// file need not be there yet; of what is there already, and of more than that at once, only the last most_bytes are read.
    explicit LogTail(std::filesystem::path file, int64_t most_bytes = int64_t{4} << 20);
    ~LogTail();
    LogTail(const LogTail&) = delete;
    LogTail& operator=(const LogTail&) = delete;

    struct Reader {
        std::function<void(std::string_view line)> line;  // without its end
        std::function<void()> anew;                       // what was read so far no longer counts
    };
    /// All that came since the last call.
    void read(const Reader& reader);

private:
    void reopen();
    void take(std::string_view piece, const Reader& reader);

    static constexpr size_t kLongestLine = size_t{1} << 20;  // bytes; a longer one is left out

    std::filesystem::path file_;
    int64_t most_bytes_;
    int descriptor_ = -1;
    int64_t position_ = 0;    // behind what was read
    std::string unfinished_;  // a line so far
    bool skipping_ = false;   // up to the next line's beginning
};

}  // namespace jem
