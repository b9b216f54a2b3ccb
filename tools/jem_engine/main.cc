// jem_engine: one program, a subcommand a file.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <new>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <system_error>
#include <typeinfo>

#include "data/input_error.h"
#include "engine/device/out_of_memory.h"
#include "engine/files/messages.h"
#include "tools/jem_engine/job.h"
#include "tools/jem_engine/options.h"

namespace jem {
namespace {

// The one place where an error is told. Of several ranks that find the same fault one alone gets here (see `together`), but for faults
// from before they have joined: those are everyone's.
int failed(Job& job, int code, const std::string& message) {
    const std::string clean = without_controls(message);
    const char* const text = clean.c_str();
    if (job.first())
        std::fprintf(stderr, "error: %s\n", text);
    else if (job.joined())
        std::fprintf(stderr, "error on rank %d: %s\n", job.launch().rank, text);
    job.leave_failed(code);
    return code;
}

// Commands that work with several ranks; the others would do the same work in each.
bool for_several_ranks(const std::string& command) { return command == "train" || command == "bench"; }

std::string no_more_memory() { return OutOfMemory("the system gives this process no more").what(); }

// The text of an error of this program's own; of one that a library threw, what a person can make of it.
std::string own_words(const std::exception& e) {
    if (std::ferror(stdout) != 0) return "A result could not be written to stdout. Check where it goes, and the disk's free space.";
    if (const auto* file = dynamic_cast<const std::filesystem::filesystem_error*>(&e))
        return "cannot use '" + file->path1().string() + "' (" + file->code().message() + "). Check the path and its permissions.";
    if (const auto* system = dynamic_cast<const std::system_error*>(&e))
        return "The system refused something (" + system->code().message() + "). Check what this process may use.";
    if (dynamic_cast<const nlohmann::json::exception*>(&e) != nullptr)
        return "A JSON text is not as expected (a file is damaged, or of another version). Check config.json, or write it anew.";
    const std::string text = e.what();
    // The standard library's are names of its functions ("vector::reserve", "stoll").
    const bool names_function = text.find("::") != std::string::npos || text.find(' ') == std::string::npos;
    if (dynamic_cast<const std::length_error*>(&e) != nullptr && names_function) return no_more_memory();
    const bool own =
        dynamic_cast<const std::runtime_error*>(&e) != nullptr || (dynamic_cast<const std::logic_error*>(&e) != nullptr && !names_function);
    return own ? text : "Something is wrong inside the program (" + std::string(typeid(e).name()) + "). This is a bug.";
}

int run(Job& job, const std::string& name, const Command& command) {
    try {
        if (job.several() && !for_several_ranks(name))
            throw InputError(name + " works in one process (" + std::to_string(job.launch().size) +
                             " were started). Start it without mpirun and torchrun.");
        const int code = command();
        job.leave();
        return code;
    } catch (const OtherRankFailed& e) {
        job.leave_failed(e.exit_code());
        return e.exit_code();
    } catch (const RankLost& e) {
        if (!job.first() && !job.joined()) std::fprintf(stderr, "error on rank %d: %s\n", job.launch().rank, e.what());
        return failed(job, kExitFailed, e.what());
    } catch (const InputError& e) {
        return failed(job, kExitUsage, e.what());
    } catch (const std::bad_alloc&) {
        return failed(job, kExitFailed, no_more_memory());
    } catch (const std::exception& e) {
        return failed(job, kExitFailed, own_words(e));
    }
}

// What a command has printed must arrive: a full disk, or a closed stdout, shows only here.
int with_results_written(int code) {
    std::cout.flush();
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0 && std::cout.good()) return code;
    if (errno == EPIPE) return code == kExitDone ? kExitReaderGone : code;
    const std::string why = errno != 0 ? std::generic_category().message(errno) : "a write failed";
    std::fprintf(stderr, "error: The result could not be written to stdout (%s). Check where it goes, and the disk's free space.\n",
                 why.c_str());
    return code == kExitDone ? kExitFailed : code;
}

// A file that is opened must not become stdin, stdout or stderr because the caller had closed these. Writing to a closed one still fails.
void occupy_standard_streams() {
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (fcntl(stream, F_GETFD) < 0 && open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY) != stream) return;
}

// What is wrong with the command line: CLI11's own texts name neither what was meant nor the way out.
std::string usage_words(const CLI::App& app, const CLI::ParseError& e, const std::string& command) {
    const std::string text = e.what(), flag = text.substr(0, text.find(':'));
    if (dynamic_cast<const CLI::ExtrasError*>(&e) != nullptr) {
        std::string unknown;
        for (const std::string& word : app.remaining(true)) unknown += " " + word;
        return command + " does not know" + unknown + " (there is no such flag, or a word too many).";
    }
    if (dynamic_cast<const CLI::ArgumentMismatch*>(&e) != nullptr)
        return flag + " is given without a value, or with too many (each flag takes its own).";
    if (dynamic_cast<const CLI::RequiredError*>(&e) != nullptr) return "A subcommand is needed (train, sample, evaluate ...).";
    const std::string conversion = "Could not convert: ";
    if (dynamic_cast<const CLI::ConversionError*>(&e) != nullptr && text.starts_with(conversion))
        return text.substr(conversion.size()) + " cannot be used (it is no number, or too large a one).";
    return text;
}
// What a script gives for a variable that is not set: no number is 0, and no name is nothing.
std::string refuse_empty(std::string& text) { return text.empty() ? "it is empty. Give a value, or leave it out" : ""; }

Job* job_or_error() {
    try {
        return &the_job();
    } catch (const InputError& e) {
        std::fprintf(stderr, "error: %s\n", e.what());
        return nullptr;
    }
}

// OpenMP's threads spin while they wait, by default for milliseconds: where another program shares the cores, an iteration of WRN-10-2
// takes 4.4 s in place of 1.8 on two of them. A short spin costs nothing on idle cores. The runtime reads this once, when it is loaded,
// so the program starts itself anew (7 ms); whoever has set any of it is left alone.
void spin_briefly(char** argv) {
    for (const char* set : {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})
        if (std::getenv(set) != nullptr) return;
    std::error_code error;
    const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
    if (error) return;
    setenv("GOMP_SPINCOUNT", "1000", 1);  // GNU's
    setenv("KMP_BLOCKTIME", "1", 1);      // LLVM's, in milliseconds
    execv(program.c_str(), argv);
}

}  // namespace
}  // namespace jem

int main(int argc, char** argv) {
    using namespace jem;
    std::signal(SIGXFSZ, SIG_IGN);  // a limit of files' sizes is an error like a full disk
    occupy_standard_streams();
    spin_briefly(argv);
    Job* const job = job_or_error();
    if (job == nullptr) return kExitUsage;
    set_listener([job](const std::string& text) {
        std::fprintf(stderr, "%s%s\n", job->first() ? "" : ("rank " + std::to_string(job->launch().rank) + ": ").c_str(),
                     without_controls(text).c_str());
    });
    CLI::App app("Joint energy-based models: train a classifier that is also a generative model, measure it, sample from it.",
                 "jem_engine");
    app.require_subcommand(1);
    app.set_version_flag("--version", JEM_VERSION);
    Command chosen;
    std::string chosen_name;
    const auto add = [&](const char* name, const char* help, Command (*add_command)(CLI::App&)) {
        CLI::App* sub = app.add_subcommand(name, help);
        const Command command = add_command(*sub);
        for (CLI::Option* option : sub->get_options())
            if (option->get_items_expected_min() > 0) option->check(CLI::Validator(refuse_empty, "", "value"));
        sub->callback([&chosen, &chosen_name, name, command] {
            chosen = command;
            chosen_name = name;
        });
    };
    add("train", "Train, or resume", add_train);
    add("watch", "Follow a run from another terminal", add_watch);
    add("bench", "Time and memory of iterations, by kind of op", add_bench);
    add("sample", "SGLD from the prior, the replay buffer or noise; sheets and tensors", add_sample);
    add("evaluate", "Accuracy, likelihood and calibration of a checkpoint", add_evaluate);
    add("plan", "Memory, work and convolution engines of a run, without running it", add_plan);
    add("step", "Exactly one training iteration on given tensors, everything dumped", add_step);
    add("selftest", "Every op and one iteration on this device against the reference", add_selftest);
    add("info", "Version, libraries, devices, recipes, data sets", add_info);

    try {
        std::vector<std::string> arguments = values_spelt_out(argc, argv);
        std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
        app.parse(std::move(arguments));
    } catch (const CLI::CallForHelp& e) {
        return with_results_written(app.exit(e));
    } catch (const CLI::CallForVersion& e) {
        return with_results_written(app.exit(e));
    } catch (const InputError& e) {
        if (job->first()) std::fprintf(stderr, "error: %s\n", e.what());
        return kExitUsage;
    } catch (const CLI::ParseError& e) {
        if (!job->first()) return kExitUsage;  // rank 0 says it
        if (argc > 1 && argv[1][0] != '-' && app.get_subcommands().empty()) {
            std::string known;
            for (const CLI::App* sub : app.get_subcommands({})) known += " " + sub->get_name();
            std::fprintf(stderr, "error: There is no command \"%s\" (known:%s). Choose one of these.\n", argv[1], known.c_str());
            return kExitUsage;
        }
        std::string command = "jem_engine";
        for (const CLI::App* sub : app.get_subcommands()) command += " " + sub->get_name();
        std::fprintf(stderr, "error: %s\nRun \"%s --help\" for what is possible.\n", usage_words(app, e, command).c_str(), command.c_str());
        return kExitUsage;
    }
    return with_results_written(run(*job, chosen_name, chosen));
}
