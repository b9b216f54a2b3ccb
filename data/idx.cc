#include "data/idx.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>

#include "data/data_file.h"
#include "data/input_error.h"

namespace jem {
namespace {

constexpr uint32_t kImageMagic = 0x00000803;  // unsigned bytes, three dimensions
constexpr uint32_t kLabelMagic = 0x00000801;  // unsigned bytes, one dimension
constexpr uint64_t kMaxDeflateRatio = 1032;   // deflate cannot shrink data more than this (zlib's technical notes)
constexpr size_t kReadStep = size_t{1} << 22;

std::string hex(uint32_t value) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%08x", value);
    return text;
}

/// The content of a file, unpacked on the way if it is gzipped.
class ContentReader {
public:
    explicit ContentReader(const std::filesystem::path& file) : file_(file) {
        file_bytes_ = open_data_file(stream_, file);
        fill();
        gzipped_ = zlib_.avail_in >= 2 && input_[0] == 0x1f && input_[1] == 0x8b;
        // 15: largest window; +16: a gzip header and CRC are required
        if (gzipped_ && inflateInit2(&zlib_, 15 + 16) != Z_OK) throw std::runtime_error("zlib failed in inflateInit2 (out of memory).");
    }
    ~ContentReader() {
        if (gzipped_) inflateEnd(&zlib_);
    }
    ContentReader(const ContentReader&) = delete;
    ContentReader& operator=(const ContentReader&) = delete;

    /// Reads up to `num_bytes`; fewer only at the end of the content.
    size_t read(uint8_t* out, size_t num_bytes) {
        size_t done = 0;
        while (done < num_bytes) {
            if (zlib_.avail_in == 0) fill();
            if (zlib_.avail_in == 0) {
                if (gzipped_ && !member_ended_) throw broken_gzip("the file ends in the middle of the gzip stream");
                break;
            }
            const size_t step = std::min(num_bytes - done, kReadStep);
            done += gzipped_ ? unpack(out + done, step) : copy(out + done, step);
        }
        offset_ += done;
        return done;
    }

    /// The error for something wrong at byte `offset` of the content.
    InputError error(uint64_t offset, const std::string& why) const {
        return damaged_data_file(file_, offset, gzipped_ ? why + "; bytes counted after unpacking" : why);
    }

    /// Bytes of content read up to now.
    uint64_t offset() const { return offset_; }

    /// No content can be longer than this.
    uint64_t max_content_bytes() const { return gzipped_ ? file_bytes_ * kMaxDeflateRatio : file_bytes_; }

private:
    void fill() {
        stream_.read(reinterpret_cast<char*>(input_.data()), static_cast<std::streamsize>(input_.size()));
        if (stream_.bad()) throw InputError("cannot read data file '" + file_.string() + "' (input/output error). Check the disk.");
        zlib_.next_in = input_.data();
        zlib_.avail_in = static_cast<uInt>(stream_.gcount());
        filled_ += zlib_.avail_in;
    }

    size_t copy(uint8_t* out, size_t num_bytes) {
        const size_t num = std::min<size_t>(num_bytes, zlib_.avail_in);
        std::copy_n(zlib_.next_in, num, out);
        zlib_.next_in += num;
        zlib_.avail_in -= static_cast<uInt>(num);
        return num;
    }

    size_t unpack(uint8_t* out, size_t num_bytes) {
        if (member_ended_) {  // a gzip file may be several streams one after the other
            inflateReset(&zlib_);
            member_ended_ = false;
        }
        zlib_.next_out = out;
        zlib_.avail_out = static_cast<uInt>(num_bytes);
        const int status = inflate(&zlib_, Z_NO_FLUSH);
        if (status == Z_STREAM_END) {
            member_ended_ = true;
        } else if (status != Z_OK) {
            throw broken_gzip(zlib_.msg ? zlib_.msg : "cannot be unpacked");
        }
        return num_bytes - zlib_.avail_out;
    }

    InputError broken_gzip(const std::string& why) const {
        return damaged_data_file(file_, filled_ - zlib_.avail_in, "broken gzip stream, " + why + "; bytes counted in the packed file");
    }

    std::filesystem::path file_;
    std::ifstream stream_;
    std::array<uint8_t, 65536> input_;
    z_stream zlib_{};
    uint64_t file_bytes_ = 0;
    uint64_t filled_ = 0;  // bytes taken from the file
    uint64_t offset_ = 0;  // bytes of content given to the caller
    bool gzipped_ = false;
    bool member_ended_ = false;
};

uint32_t read_big_endian(ContentReader& reader, const std::string& what) {
    std::array<uint8_t, 4> bytes;
    if (reader.read(bytes.data(), bytes.size()) != bytes.size()) {
        throw reader.error(reader.offset(), "the file ends here, expected " + what + " in the header");
    }
    return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | uint32_t{bytes[3]};
}

void check_magic(ContentReader& reader, uint32_t expected, const std::string& kind) {
    const uint32_t magic = read_big_endian(reader, "a magic number");
    if (magic != expected)
        throw reader.error(0, "magic number " + hex(magic) + ", expected " + hex(expected) + " of an idx file of " + kind);
}

uint32_t read_count(ContentReader& reader, const std::string& kind) {
    const uint32_t count = read_big_endian(reader, "the number of " + kind);
    if (count == 0) throw reader.error(4, "the header announces 0 " + kind + ", expected at least 1");
    return count;
}

/// The rest of the content, which must be count * item_bytes long.
std::vector<uint8_t> read_payload(ContentReader& reader, uint32_t count, uint64_t item_bytes, const std::string& kind) {
    const uint64_t num_bytes = count * item_bytes;
    const std::string expected = std::to_string(count) + " " + kind + " (" + std::to_string(num_bytes) + " bytes) as the header announces";
    if (num_bytes > reader.max_content_bytes()) throw reader.error(4, "the file is too short, expected " + expected);
    std::vector<uint8_t> payload;
    while (payload.size() < num_bytes) {  // in steps, so that memory grows with what is really there
        const size_t done = payload.size();
        payload.resize(static_cast<size_t>(std::min<uint64_t>(num_bytes, done + kReadStep)));
        const size_t wanted = payload.size() - done;
        if (reader.read(payload.data() + done, wanted) != wanted) {
            throw reader.error(reader.offset(), "the file ends here, expected " + expected);
        }
    }
    const uint64_t end = reader.offset();
    uint8_t extra;
    if (reader.read(&extra, 1) != 0) {  // this read also makes zlib check the CRC
        throw reader.error(end, "the file goes on, expected its end after " + expected);
    }
    return payload;
}

}  // namespace

std::vector<uint8_t> read_idx_images(const std::filesystem::path& file, int height, int width) {
    ContentReader reader(file);
    check_magic(reader, kImageMagic, "images");
    const uint32_t count = read_count(reader, "images");
    const uint32_t rows = read_big_endian(reader, "the image height");
    const uint32_t columns = read_big_endian(reader, "the image width");
    if (rows != static_cast<uint32_t>(height) || columns != static_cast<uint32_t>(width)) {
        throw reader.error(8, "images of " + std::to_string(rows) + "x" + std::to_string(columns) + ", expected " + std::to_string(height) +
                                  "x" + std::to_string(width));
    }
    return read_payload(reader, count, uint64_t{rows} * columns, "images");
}

std::vector<int32_t> read_idx_labels(const std::filesystem::path& file, int num_classes) {
    ContentReader reader(file);
    check_magic(reader, kLabelMagic, "labels");
    const uint32_t count = read_count(reader, "labels");
    const std::vector<uint8_t> bytes = read_payload(reader, count, 1, "labels");
    for (size_t i = 0; i < bytes.size(); ++i) {
        if (bytes[i] >= num_classes) {
            throw reader.error(8 + i, "label " + std::to_string(bytes[i]) + ", expected 0 to " + std::to_string(num_classes - 1));
        }
    }
    return {bytes.begin(), bytes.end()};
}

void read_idx_set(ImageSet& set, const std::vector<std::filesystem::path>& files) {
    const std::filesystem::path &image_file = files.at(0), &label_file = files.at(1);
    set.labels = read_idx_labels(label_file, set.num_classes);
    set.pixels = read_idx_images(image_file, set.height, set.width);
    const size_t num_images = set.pixels.size() / (static_cast<size_t>(set.height) * static_cast<size_t>(set.width));
    if (num_images != set.labels.size()) {
        throw damaged_data_file(label_file, 4,
                                std::to_string(set.labels.size()) + " labels, expected " + std::to_string(num_images) +
                                    ", the number of images in '" + image_file.filename().string() + "'");
    }
}

}  // namespace jem
