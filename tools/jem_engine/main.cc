// jem_engine: one program, a subcommand a file.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <new>
#include <system_error>

#include "data/input_error.h"
#include "tools/jem_engine/job.h"
#include "tools/jem_engine/options.h"

namespace jem {
namespace {

// The one place where an error is told. Of several ranks that find the same fault one alone gets here (see `together`), but for faults
// from before they have joined: those are everyone's.
int failed(Job& job, int code, const char* text) {
    if (job.first())
        std::fprintf(stderr, "error: %s\n", text);
    else if (job.joined())
        std::fprintf(stderr, "error on rank %d: %s\n", job.launch().rank, text);
    job.leave_failed(code);
    return code;
}

// Commands that work with several ranks; the others would do the same work in each.
bool for_several_ranks(const std::string& command) { return command == "train" || command == "bench"; }

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
    } catch (const InputError& e) {
        return failed(job, kExitUsage, e.what());
    } catch (const std::bad_alloc&) {
        return failed(job, kExitFailed, "out of memory. Lower --batch-size, --gen-batch-size, --buffer-size or --width.");
    } catch (const std::exception& e) {
        return failed(job, kExitFailed, e.what());
    }
}

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
    spin_briefly(argv);
    Job* const job = job_or_error();
    if (job == nullptr) return kExitUsage;
    CLI::App app("Joint energy-based models: train a classifier that is also a generative model, measure it, sample from it.",
                 "jem_engine");
    app.require_subcommand(1);
    app.set_version_flag("--version", JEM_VERSION);
    Command chosen;
    std::string chosen_name;
    const auto add = [&](const char* name, const char* help, Command (*add_command)(CLI::App&)) {
        CLI::App* sub = app.add_subcommand(name, help);
        const Command command = add_command(*sub);
        sub->callback([&chosen, &chosen_name, name, command] {
            chosen = command;
            chosen_name = name;
        });
    };
    add("train", "Train, or resume", add_train);
    add("bench", "Time and memory of iterations, by kind of op", add_bench);
    add("sample", "SGLD from the prior, the replay buffer or noise; sheets and tensors", add_sample);
    add("evaluate", "Accuracy, likelihood and calibration of a checkpoint", add_evaluate);
    add("plan", "Memory, work and convolution engines of a run, without running it", add_plan);
    add("step", "Exactly one training iteration on given tensors, everything dumped", add_step);
    add("selftest", "Every op and one iteration on this device against the reference", add_selftest);
    add("info", "Version, libraries, devices, recipes, data sets", add_info);

    try {
        app.parse(argc, argv);
    } catch (const CLI::CallForHelp& e) {
        return app.exit(e);
    } catch (const CLI::CallForVersion& e) {
        return app.exit(e);
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
        std::fprintf(stderr, "error: %s\nRun \"%s --help\" for what is possible.\n", e.what(), command.c_str());
        return kExitUsage;
    }
    return run(*job, chosen_name, chosen);
}
