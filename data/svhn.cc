#include "data/svhn.h"

#include <matio.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <limits>
#include <memory>
#include <span>

#include "data/data_file.h"
#include "data/input_error.h"

namespace jem {
namespace {

using std::filesystem::path;

constexpr size_t kSide = 32, kChannels = 3, kPlane = kSide * kSide, kImage = kPlane * kChannels;

InputError unfit(const path& file, const std::string& why) {
    return InputError(
        "cannot use data file '" + file.string() + "' (" + why +
        "). Check which set the folder holds, or get the file again: train_32x32.mat and test_32x32.mat of SVHN are expected.");
}

/// libmatio trusts lengths, allocates what they announce, and reads past checksums: so the file is walked first. After 128 bytes of header
/// come elements, each a type, a length and content, which zlib may have packed. Each must be a plain array that fits its element; what
/// holds other arrays (cells, fields, objects) is refused whatever its name.
class ElementCheck {
public:
    explicit ElementCheck(const path& file) : file_(file) { file_bytes_ = open_data_file(stream_, file); }

    /// Returns the most bytes that an element holds, unpacked.
    uint64_t run() {
        constexpr uint64_t kHeader = 128;
        std::array<uint8_t, kHeader> header;
        read(header.data(), kHeader, 0);
        // "MI" as the machine wrote it, behind the version: 1.0 is MATLAB 5's; a swapped one no file of SVHN is
        if (header[126] != 'I' || header[127] != 'M' || header[124] != 0 || header[125] != 1)
            throw damaged_data_file(file_, 124, "no header of a little-endian MATLAB 5 file, expected one");
        uint64_t at = kHeader, most = 0;
        while (at < file_bytes_) {
            std::array<uint8_t, 8> tag;
            read(tag.data(), tag.size(), at);
            const uint32_t type = word(tag.data()), length = word(tag.data() + 4);
            if (type != kMatrix && type != kCompressed)
                throw damaged_data_file(file_, at, "element of type " + std::to_string(type) + ", expected a matrix, 14 or 15");
            if (length > file_bytes_ - at - tag.size())
                throw damaged_data_file(file_, at + 4, "the file ends in an element of " + std::to_string(length) + " bytes");
            at += tag.size();
            std::vector<uint8_t> start;
            const uint64_t whole = type == kCompressed ? unpacked(start, at, length) : length;
            if (type != kCompressed) {
                start.resize(std::min<size_t>(length, kStart));
                read(start.data(), start.size(), at);
            }
            check_array(start, whole, at);
            most = std::max(most, whole);
            at += length;
        }
        return most;
    }

private:
    static constexpr uint32_t kMatrix = 14, kCompressed = 15, kBytes = 1, kIntegers = 5, kWords = 6;  // types of elements and parts
    static constexpr uint32_t kMostSizes = 8, kMostName = 63;                                         // MATLAB's own limit of names
    static constexpr size_t kStart = 16 + 8 + 4 * kMostSizes + 8 + 64 + 8;                            // all of an array but its values

    static uint32_t word(const uint8_t* b) { return b[0] | uint32_t{b[1]} << 8 | uint32_t{b[2]} << 16 | uint32_t{b[3]} << 24; }

    void read(uint8_t* out, size_t num_bytes, uint64_t at) {
        stream_.seekg(static_cast<std::streamoff>(at));
        if (!stream_.read(reinterpret_cast<char*>(out), static_cast<std::streamsize>(num_bytes)))
            throw damaged_data_file(file_, file_bytes_, "the file ends here, expected a header or an element");
    }

    /// A part of an array: its tag and where its content begins. A short one holds up to 4 bytes beside the type.
    struct Part {
        uint32_t type = 0, length = 0;
        size_t content = 0, end = 0;
    };
    Part part(std::span<const uint8_t> start, size_t tag, uint64_t at) const {
        if (tag > start.size() || start.size() - tag < 8) throw damaged_data_file(file_, at, "an array that ends in its header");
        const uint32_t first = word(&start[tag]), short_length = first >> 16;
        Part p{.type = first, .length = word(&start[tag + 4]), .content = tag + 8};
        if (short_length > 0) p = {.type = first & 0xffff, .length = short_length, .content = tag + 4};
        if (short_length > 4) throw damaged_data_file(file_, at, "a short part of " + std::to_string(short_length) + " bytes");
        p.end = short_length > 0 ? tag + 8 : p.content + (size_t{p.length} + 7) / 8 * 8;
        return p;
    }

    /// start: the first bytes of an array of `whole` bytes, its parts being flags, sizes, name and values.
    void check_array(std::span<const uint8_t> start, uint64_t whole, uint64_t at) const {
        const auto refuse = [&](const std::string& why) { throw damaged_data_file(file_, at, "an array " + why); };
        const Part flags = part(start, 0, at);
        if (flags.type != kWords || flags.length != 8 || start.size() < 16) refuse("without flags");
        const uint32_t kind = start[flags.content];
        // text, or numbers
        if (kind != 4 && (kind < 6 || kind > 15)) refuse("of MATLAB's class " + std::to_string(kind) + ", expected plain ones");
        const Part sizes = part(start, flags.end, at);
        if (sizes.type != kIntegers || sizes.length < 8 || sizes.length > 4 * kMostSizes || sizes.length % 4 != 0 ||
            sizes.end > start.size())
            refuse("without 2 to " + std::to_string(kMostSizes) + " sizes");
        uint64_t values = 1;
        for (uint32_t i = 0; i < sizes.length; i += 4) {
            const uint32_t size = word(&start[sizes.content + i]);
            if (size > 0x7fffffff || __builtin_mul_overflow(values, size, &values)) refuse("of sizes beyond any file");
        }
        const Part name = part(start, sizes.end, at);
        if (name.type != kBytes || name.length > kMostName || name.end > start.size()) refuse("without a name");
        const Part data = part(start, name.end, at);
        constexpr std::array<uint8_t, 19> kTypeBytes = {0, 1, 1, 2, 2, 4, 4, 4, 0, 8, 0, 0, 8, 8, 0, 0, 1, 2, 4};  // by the stored type
        const uint64_t bytes = data.type < kTypeBytes.size() ? kTypeBytes[data.type] : 0;
        if (bytes == 0) refuse("of values of the unknown type " + std::to_string(data.type));
        if (data.length > whole - data.content) refuse("that ends before its values do");
        if (kind != 4 && values != data.length / bytes)  // characters may be longer
            refuse(values > data.length / bytes ? "of more values than it holds: more than the file holds"
                                                : "of fewer values than it holds");
        if (data.length % bytes != 0) refuse("that ends in a value");
    }

    /// Unpacks a compressed element, and throws it away but for the array's start: zlib compares its checksum.
    uint64_t unpacked(std::vector<uint8_t>& start, uint64_t at, uint32_t length) {
        z_stream zlib{};
        if (inflateInit(&zlib) != Z_OK) throw std::runtime_error("zlib failed in inflateInit (out of memory).");
        const std::unique_ptr<z_stream, int (*)(z_stream*)> end(&zlib, inflateEnd);
        std::array<uint8_t, 65536> in, out;
        constexpr size_t kTag = 8;
        uint64_t left = length, total = 0;
        int status = Z_OK;
        while (status == Z_OK) {
            if (zlib.avail_in == 0) {
                const size_t step = static_cast<size_t>(std::min<uint64_t>(left, in.size()));
                if (step == 0) break;
                read(in.data(), step, at + length - left);
                left -= step;
                zlib.next_in = in.data();
                zlib.avail_in = static_cast<uInt>(step);
            }
            zlib.next_out = out.data();
            zlib.avail_out = static_cast<uInt>(out.size());
            status = inflate(&zlib, Z_NO_FLUSH);
            const size_t got = out.size() - zlib.avail_out;
            start.insert(start.end(), out.begin(), out.begin() + static_cast<std::ptrdiff_t>(std::min(got, kTag + kStart - start.size())));
            total += got;
        }
        if (status != Z_STREAM_END)
            throw damaged_data_file(file_, at + length - left - zlib.avail_in,
                                    std::string("broken compressed element, ") + (zlib.msg ? zlib.msg : "it ends early"));
        if (total < kTag || word(start.data()) != kMatrix || word(start.data() + 4) + kTag != total)
            throw damaged_data_file(file_, at, "the compressed element holds no whole matrix");
        start.erase(start.begin(), start.begin() + kTag);
        return total - kTag;
    }

    path file_;
    std::ifstream stream_;
    uint64_t file_bytes_ = 0;
};

using Variable = std::unique_ptr<matvar_t, void (*)(matvar_t*)>;

/// The variable's header alone.
Variable header_of(mat_t* mat, const path& file, const char* name) {
    Mat_Rewind(mat);
    Variable variable(Mat_VarReadInfo(mat, name), Mat_VarFree);
    if (!variable) throw unfit(file, std::string("it has no readable variable ") + name);
    return variable;
}

std::string sizes_of(const matvar_t& variable) {
    std::string text;
    for (int i = 0; i < variable.rank; ++i) text += (i > 0 ? "x" : "") + std::to_string(variable.dims[i]);
    return text;
}

template <class T>
void read_data(std::vector<T>& out, mat_t* mat, matvar_t* variable, const path& file) {
    if (Mat_VarReadDataLinear(mat, variable, out.data(), 0, 1, static_cast<int>(out.size())) != 0)
        throw unfit(file, std::string("the data of ") + variable->name + " cannot be read");
}

/// Label as stored -> digit.
int32_t digit(double label, size_t i, const path& file) {
    if (!(label >= 1 && label <= 10) || label != std::floor(label))
        throw unfit(file, "label " + std::to_string(i) + " is " + std::to_string(label) + ", expected a whole number from 1 to 10");
    return label == 10 ? 0 : static_cast<int32_t>(label);
}

void read_labels(std::vector<int32_t>& labels, mat_t* mat, const path& file, size_t count) {
    const Variable y = header_of(mat, file, "y");
    const bool bytes = y->class_type == MAT_C_UINT8;
    if ((!bytes && y->class_type != MAT_C_DOUBLE) || y->isComplex || y->rank != 2 || y->dims[0] * y->dims[1] != count ||
        (y->dims[0] != count && y->dims[1] != count))
        throw unfit(file, "y is of MATLAB's class " + std::to_string(y->class_type) + " and " + sizes_of(*y) +
                              ", expected real uint8 (9) or double (6) of " + std::to_string(count) + "x1");
    std::vector<uint8_t> small(bytes ? count : 0);
    std::vector<double> real(bytes ? 0 : count);
    if (bytes)
        read_data(small, mat, y.get(), file);
    else
        read_data(real, mat, y.get(), file);
    for (size_t i = 0; i < count; ++i) labels.push_back(digit(bytes ? small[i] : real[i], i, file));
}

}  // namespace

void read_svhn_set(ImageSet& set, const std::vector<path>& files) {
    const path& file = files.at(0);
    const uint64_t most = ElementCheck(file).run();
    const std::unique_ptr<mat_t, int (*)(mat_t*)> mat(Mat_Open(file.c_str(), MAT_ACC_RDONLY), Mat_Close);
    if (!mat || Mat_GetVersion(mat.get()) != MAT_FT_MAT5) throw unfit(file, "libmatio cannot read it as a MATLAB 5 file");

    const Variable x = header_of(mat.get(), file, "X");
    if (x->class_type != MAT_C_UINT8 || x->isComplex)
        throw unfit(file, "X is of MATLAB's class " + std::to_string(x->class_type) + ", expected real uint8, 9");
    // One image: MATLAB drops the last size where it is 1.
    if ((x->rank != 4 && x->rank != 3) || x->dims[0] != kSide || x->dims[1] != kSide || x->dims[2] != kChannels)
        throw unfit(file, "X is " + sizes_of(*x) + ", expected 32x32x3xN");
    const size_t count = x->rank == 4 ? x->dims[3] : 1;
    if (count == 0) throw unfit(file, "X holds no image");
    if (count > most / kImage || count > size_t{std::numeric_limits<int>::max()} / kImage)
        throw unfit(file, "X is " + sizes_of(*x) + ", more than the file holds");

    std::vector<int32_t> labels;
    read_labels(labels, mat.get(), file, count);
    std::vector<uint8_t> columns(count * kImage);  // [N,C,W,H]: MATLAB's first index runs fastest
    read_data(columns, mat.get(), x.get(), file);
    set.labels.insert(set.labels.end(), labels.begin(), labels.end());
    const size_t first = set.pixels.size();
    set.pixels.resize(first + columns.size());
    for (size_t n = 0; n < count; ++n) {
        const uint8_t* planes = columns.data() + n * kImage;
        uint8_t* image = set.pixels.data() + first + n * kImage;
        for (size_t c = 0; c < kChannels; ++c)
            for (size_t w = 0; w < kSide; ++w)
                for (size_t h = 0; h < kSide; ++h) image[(h * kSide + w) * kChannels + c] = *planes++;
    }
}

std::string missing_matio() { return ""; }

std::string matio_version() {
    int major = 0, minor = 0, release = 0;
    Mat_GetLibraryVersion(&major, &minor, &release);
    return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
}

}  // namespace jem
