#include "engine/files/output_file.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <thread>

#include "data/input_error.h"
#include "data/is_there.h"
#include "tests/temp_folder.h"

namespace jem {
namespace {

using std::filesystem::path;

std::string refusal(const std::vector<NamedPath>& outputs, const std::vector<NamedPath>& inputs) {
    try {
        check_outputs(outputs, inputs);
    } catch (const InputError& error) {
        return error.what();
    }
    return "";
}

bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

size_t count_files(const path& folder) {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder), std::filesystem::directory_iterator()));
}

// The number of a process that has just ended.
int dead_process() {
    const pid_t child = fork();
    if (child == 0) _exit(0);
    waitpid(child, nullptr, 0);
    return child;
}

TEST_CASE("output_file_is_the_old_one_until_it_is_committed") {
    const TempFolder folder;
    folder.write("x", "old");
    chmod((folder.path() / "x").c_str(), 0600);
    {
        OutputFile file(folder.path() / "x");
        file.write("half", 4);
        CHECK(folder.read("x") == "old");
        CHECK(is_there(folder.path() / ("x." + std::to_string(getpid()) + ".tmp")));
    }
    CHECK(folder.read("x") == "old");
    CHECK(count_files(folder.path()) == 1);
    write_file(folder.path() / "x", "new");
    CHECK(folder.read("x") == "new");
    CHECK(count_files(folder.path()) == 1);
    struct stat now {};
    REQUIRE(stat((folder.path() / "x").c_str(), &now) == 0);
    CHECK((now.st_mode & 0777) == 0600);
}

TEST_CASE("output_file_follows_links_and_leaves_them") {
    const TempFolder folder;
    folder.write("there/target", "old");
    std::filesystem::create_symlink("there/target", folder.path() / "link");
    std::filesystem::create_symlink("link", folder.path() / "link_to_link");
    std::filesystem::create_symlink("there/none_yet", folder.path() / "dangling");
    write_file(folder.path() / "link_to_link", "new");
    write_file(folder.path() / "dangling", "made");
    CHECK(std::filesystem::is_symlink(folder.path() / "link"));
    CHECK(std::filesystem::is_symlink(folder.path() / "link_to_link"));
    CHECK(std::filesystem::is_symlink(folder.path() / "dangling"));
    CHECK(folder.read("there/target") == "new");
    CHECK(folder.read("there/none_yet") == "made");
    CHECK(count_files(folder.path() / "there") == 2);
    std::filesystem::create_symlink("loop", folder.path() / "loop");
    CHECK_THROWS_AS(write_file(folder.path() / "loop", "x"), InputError);
}

TEST_CASE("output_file_writes_to_a_pipe_and_leaves_it") {
    const TempFolder folder;
    const path pipe = folder.path() / "pipe";
    REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
    std::string received;
    std::thread reader([&] { received = read_file(pipe); });
    write_file(pipe, "through the pipe");
    reader.join();
    CHECK(received == "through the pipe");
    CHECK(std::filesystem::is_fifo(pipe));
    write_file("/dev/null", "nowhere");
    CHECK(std::filesystem::is_character_file("/dev/null"));
    if (is_there("/dev/full")) CHECK_THROWS_AS(write_file("/dev/full", "x"), std::runtime_error);
}

TEST_CASE("output_file_takes_the_longest_names") {
    const TempFolder folder;
    const std::string longest(255, 'a');
    write_file(folder.path() / longest, "x");
    CHECK(folder.read(longest) == "x");
    CHECK_THROWS_AS(write_file(folder.path() / std::string(256, 'a'), "x"), InputError);
    CHECK(count_files(folder.path()) == 1);
}

TEST_CASE("outputs_that_are_inputs_or_each_other_are_refused_by_any_name") {
    const TempFolder folder;
    const path input = folder.write("in", "weights");
    std::filesystem::create_symlink("in", folder.path() / "link");
    std::filesystem::create_hard_link(input, folder.path() / "hard");
    std::filesystem::create_directory(folder.path() / "sub");
    std::filesystem::create_symlink("not_yet", folder.path() / "dangling");
    const path absent = folder.path() / "not_yet";
    for (const path& output : {input, folder.path() / "link", folder.path() / "hard", folder.path() / "sub" / ".." / "in"}) {
        INFO(output.string());
        const std::string error = refusal({{"--raw", output}}, {{"--checkpoint", input}});
        CHECK(says(error, "--raw"));
        CHECK(says(error, "--checkpoint"));
    }
    for (const path& output : {absent, folder.path() / "sub" / ".." / "not_yet", folder.path() / "dangling"}) {
        INFO(output.string());
        const std::string error = refusal({{"--sheet", absent}, {"--raw", output}}, {});
        CHECK(says(error, "--sheet"));
        CHECK(says(error, "--raw"));
    }
    CHECK(refusal({{"--sheet", absent}, {"--raw", folder.path() / "other"}}, {{"--checkpoint", input}}) == "");
    CHECK(refusal({{"--sheet", ""}, {"--raw", ""}}, {{"--checkpoint", ""}}) == "");
    CHECK(refusal({{"--sheet", "/dev/null"}, {"--raw", "/dev/null"}}, {}) == "");
    CHECK(folder.read("in") == "weights");
}

TEST_CASE("outputs_that_cannot_be_written_are_told_before_they_are_needed") {
    const TempFolder folder;
    folder.write("file", "");
    std::filesystem::create_symlink("loop", folder.path() / "loop");
    CHECK(says(refusal({{"--raw", folder.path()}}, {}), "it is a folder"));
    CHECK(says(refusal({{"--raw", folder.path() / "none" / "x"}}, {}), "there is no folder"));
    CHECK(says(refusal({{"--raw", folder.path() / "file" / "x"}}, {}), "there is no folder"));
    CHECK(says(refusal({{"--raw", folder.path() / "loop"}}, {}), "symbolic links"));
    CHECK(says(refusal({{"--raw", folder.path() / std::string(300, 'a')}}, {}), "too long"));
}

TEST_CASE("what_cannot_be_looked_at_is_not_called_missing") {
    const TempFolder folder;
    folder.write("file", "content");
    std::filesystem::create_symlink("loop", folder.path() / "loop");
    CHECK(is_there(folder.path() / "file"));
    CHECK(!is_there(folder.path() / "none"));
    CHECK(!is_there(folder.path() / "file" / "none"));
    CHECK_THROWS_AS(is_there(folder.path() / "loop"), InputError);
    CHECK_THROWS_AS(is_there(folder.path() / "loop" / "x"), InputError);
    CHECK_THROWS_AS(is_there(folder.path() / std::string(300, 'a')), InputError);
    CHECK(read_file(folder.path() / "file") == "content");
    for (const char* name : {"", "loop", "none"}) CHECK_THROWS_AS(read_file(folder.path() / name), InputError);
}

TEST_CASE("temporaries_of_dead_processes_are_removed_and_no_others") {
    const TempFolder folder;
    const std::string dead = "." + std::to_string(dead_process()) + ".tmp", alive = "." + std::to_string(getppid()) + ".tmp";
    for (const std::string& name : {"last.x" + dead, "last.x" + std::string(".tmp"), "last.x" + alive, "last.x" + std::string(),
                                    "mine.x" + dead, "last.tmp" + std::string(".txt")})
        folder.write(name, "");
    remove_dead_temporaries(folder.path(), {"last."});
    CHECK(!is_there(folder.path() / ("last.x" + dead)));
    CHECK(!is_there(folder.path() / "last.x.tmp"));
    CHECK(is_there(folder.path() / ("last.x" + alive)));
    CHECK(is_there(folder.path() / "last.x"));
    CHECK(is_there(folder.path() / ("mine.x" + dead)));
    CHECK(is_there(folder.path() / "last.tmp.txt"));
    CHECK_NOTHROW(remove_dead_temporaries(folder.path() / "none", {"last."}));
}

}  // namespace
}  // namespace jem
