#include "tools/jem_engine/log_tail.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/temp_folder.h"

namespace jem {
namespace {

void append(const std::filesystem::path& file, const std::string& text) { std::ofstream(file, std::ios::app | std::ios::binary) << text; }

// What a call of read() yields: lines joined by '|', '!' where it began anew.
std::string read(LogTail& tail) {
    std::string all;
    tail.read({.line = [&](std::string_view line) { all += std::string(line) + "|"; }, .anew = [&] { all += "!"; }});
    return all;
}

}  // namespace

TEST_CASE("log_tail_yields_each_line_once_and_only_when_it_is_whole") {
    const TempFolder folder;
    const auto file = folder.path() / "log";
    LogTail tail(file);
    CHECK(read(tail).empty());  // not there yet
    append(file, "one\ntw");
    CHECK(read(tail) == "one|");
    CHECK(read(tail).empty());
    append(file, "o\n\nthree\n");
    CHECK(read(tail) == "two||three|");
    append(file, "half");
    LogTail second(file);
    CHECK(read(second) == "one|two||three|");
}

TEST_CASE("log_tail_reads_a_replaced_or_shortened_file_anew_and_waits_for_a_missing_one") {
    const TempFolder folder;
    const auto file = folder.write("log", "one\ntwo\nthree");
    LogTail tail(file);
    CHECK(read(tail) == "one|two|");
    // by a rename, as cut_metrics does; half a line of the old file does not reach into the new one
    std::filesystem::rename(folder.write("next", "one\n"), file);
    CHECK(read(tail) == "!one|");
    append(file, "2\n");
    CHECK(read(tail) == "2|");
    std::filesystem::rename(folder.write("next", "one\n2\n3\n4\n"), file);  // longer by the time of the next look
    CHECK(read(tail) == "!one|2|3|4|");
    std::filesystem::rename(file, folder.path() / "away");
    CHECK(read(tail).empty());
    std::filesystem::rename(folder.path() / "away", file);
    append(file, "5\n");
    CHECK(read(tail) == "5|");
    folder.write("log", "1\n");  // in place
    CHECK(read(tail) == "!1|");
    std::filesystem::remove(file);
    std::filesystem::create_directory(file);
    CHECK(read(tail).empty());
}

TEST_CASE("log_tail_reads_only_the_end_of_a_long_file_whole_lines_of_it") {
    const TempFolder folder;
    const auto file = folder.write("log", "0123456789\nabcdefghi\nlast\n");
    LogTail tail(file, 20);
    CHECK(read(tail) == "abcdefghi|last|");
    append(file, std::string(100, 'x') + "\ny\n");  // more at once than it reads
    CHECK(read(tail) == "!y|");
}

TEST_CASE("log_tail_leaves_out_a_line_of_megabytes") {
    const TempFolder folder;
    const auto file = folder.write("log", "one\n" + std::string(3 << 20, 'x') + "\ntwo\n");
    LogTail tail(file);
    CHECK(read(tail) == "one|two|");
}

}  // namespace jem
