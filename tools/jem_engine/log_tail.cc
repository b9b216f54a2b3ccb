#include "tools/jem_engine/log_tail.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace jem {

LogTail::LogTail(std::filesystem::path file, int64_t most_bytes) : file_(std::move(file)), most_bytes_(most_bytes) {}

LogTail::~LogTail() {
    if (descriptor_ >= 0) close(descriptor_);
}

void LogTail::reopen() {
    // opened before the old one is closed: a file whose number is free again could not be told from it
    const int next = open(file_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (next < 0) return;
    if (descriptor_ >= 0) close(descriptor_);
    descriptor_ = next;
    position_ = 0;
    unfinished_.clear();
    skipping_ = false;
}

void LogTail::read(const Reader& reader) {
    struct stat there = {}, mine = {};
    const bool is_there = stat(file_.c_str(), &there) == 0 && S_ISREG(there.st_mode);
    if (descriptor_ < 0 && !is_there) return;
    const auto replaced = [&] { return there.st_dev != mine.st_dev || there.st_ino != mine.st_ino; };
    if (descriptor_ < 0 || (is_there && (fstat(descriptor_, &mine) != 0 || replaced()))) {
        const int before = descriptor_;
        reopen();
        if (descriptor_ < 0) return;
        if (before >= 0) reader.anew();
    }
    if (fstat(descriptor_, &mine) != 0) return;
    int64_t size = mine.st_size;
    if (size < position_ || size - position_ > most_bytes_) {
        if (position_ > 0) reader.anew();
        position_ = std::max<int64_t>(0, size - most_bytes_);
        unfinished_.clear();
        skipping_ = position_ > 0;
    }
    std::vector<char> piece(size_t{1} << 16);
    while (position_ < size) {
        const size_t wanted = static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(piece.size()), size - position_));
        const ssize_t got = pread(descriptor_, piece.data(), wanted, position_);
        if (got <= 0) return;
        position_ += got;
        take({piece.data(), static_cast<size_t>(got)}, reader);
    }
}

void LogTail::take(std::string_view piece, const Reader& reader) {
    while (!piece.empty()) {
        const size_t end = piece.find('\n');
        const std::string_view part = piece.substr(0, end);
        if (!skipping_) unfinished_.append(part);
        if (unfinished_.size() > kLongestLine) {
            unfinished_.clear();
            skipping_ = true;
        }
        if (end == std::string_view::npos) return;
        if (!skipping_) reader.line(unfinished_);
        unfinished_.clear();
        skipping_ = false;
        piece.remove_prefix(end + 1);
    }
}

}  // namespace jem
