#include "engine/run/run_folder.h"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "data/input_error.h"
#include "data/is_there.h"
#include "tests/temp_folder.h"

namespace jem {
namespace {

TEST_CASE("a_run_folder_has_one_owner") {
    const TempFolder folder;
    const RunFolder run{folder.path() / "run"}, other{folder.path() / "other"};
    auto owner = run.own();
    CHECK(owner->held());
    CHECK(other.own()->held());
    try {
        run.own();
        FAIL("a second owner");
    } catch (const InputError& error) {
        const std::string text = error.what();
        CHECK(text.find("in use") != std::string::npos);
        CHECK(text.find("process " + std::to_string(getpid())) != std::string::npos);
    }
    owner.reset();
    CHECK(run.own()->held());
}

TEST_CASE("a_killed_owner_leaves_the_folder_free") {
    const TempFolder folder;
    const RunFolder run{folder.path() / "run"};
    int ready[2];
    REQUIRE(pipe(ready) == 0);
    const pid_t child = fork();
    if (child == 0) {
        const auto owner = run.own();
        [[maybe_unused]] const ssize_t told = write(ready[1], "x", 1);
        for (;;) pause();
    }
    char byte;
    REQUIRE(read(ready[0], &byte, 1) == 1);
    CHECK_THROWS_AS(run.own(), InputError);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    CHECK(run.own()->held());
    close(ready[0]);
    close(ready[1]);
}

TEST_CASE("a_file_system_without_locks_is_gone_on_with") {
    const TempFolder folder;
    for (const RunLock::Flock flock :
         {RunLock::Flock([](int, int) { return errno = ENOLCK, -1; }), RunLock::Flock([](int, int) { return errno = EOPNOTSUPP, -1; })}) {
        const RunLock lock(folder.path(), flock);
        CHECK(!lock.held());
    }
    CHECK_THROWS_AS(RunLock(folder.path(), [](int, int) { return errno = EWOULDBLOCK, -1; }), InputError);
    CHECK_THROWS_AS(RunLock(folder.path() / "none"), InputError);
}

TEST_CASE("the_owner_removes_what_killed_writers_left") {
    const TempFolder folder;
    folder.write("checkpoints/last.state.safetensors.tmp", "half");
    folder.write("checkpoints/epoch_0001.safetensors.tmp", "half");
    folder.write("samples/iteration_0000001.png.tmp", "half");
    folder.write("config.json.tmp", "half");
    folder.write("notes.tmp", "a person's");
    const auto owner = RunFolder(folder.path()).own();
    CHECK(!is_there(folder.path() / "checkpoints/last.state.safetensors.tmp"));
    CHECK(!is_there(folder.path() / "checkpoints/epoch_0001.safetensors.tmp"));
    CHECK(!is_there(folder.path() / "samples/iteration_0000001.png.tmp"));
    CHECK(!is_there(folder.path() / "config.json.tmp"));
    CHECK(folder.read("notes.tmp") == "a person's");
}

TEST_CASE("of_the_log_what_lies_beyond_a_state_is_cut_and_what_it_has_behind_it_stays") {
    const TempFolder folder;
    const RunFolder run{folder.path()};
    const std::string first = R"({"iteration":1})", back = R"({"iteration":9,"event":"rollback","attempt":1})",
                      again = R"({"iteration":2,"event":"rollback","attempt":2})", last = R"({"iteration":3})";
    folder.write("metrics.jsonl", first + "\n" + back + "\n" + again + "\n" + last + "\n");
    run.cut_metrics(2, 1);  // its state went back from 9 once, and not yet to 2
    CHECK(folder.read("metrics.jsonl") == first + "\n" + back + "\n");
    run.append_metrics(again + "\n" + last + "\n");
    run.cut_metrics(3, 2);
    CHECK(folder.read("metrics.jsonl") == first + "\n" + back + "\n" + again + "\n" + last + "\n");
}

TEST_CASE("a_configuration_that_cannot_be_read_is_told_in_own_words") {
    const TempFolder folder;
    const RunFolder run{folder.path()};
    CHECK_THROWS_AS(run.read_config(), InputError);
    folder.write("config.json", "{");
    CHECK_THROWS_AS(run.read_config(), InputError);
    const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
    folder.write("config.json", "{\"seed\": " + deep + "}");
    CHECK_THROWS_AS(run.read_config(), InputError);
    folder.write("metrics.jsonl", "{\"iteration\": 1}\n{\"iteration\": 1, \"a\": " + deep + "}\n{\"iteration\": 2}\n");
    run.cut_metrics(1, 0);
    CHECK(folder.read("metrics.jsonl") == "{\"iteration\": 1}\n");
    std::filesystem::remove(folder.path() / "config.json");
    std::filesystem::create_directory(folder.path() / "config.json");
    CHECK_THROWS_AS(run.read_config(), InputError);
    const RunFolder too_long{folder.path() / std::string(300, 'a')};
    CHECK_THROWS_AS(too_long.has_run(), InputError);
    CHECK_THROWS_AS(too_long.create(), InputError);
}

}  // namespace
}  // namespace jem
