// jem_engine: one program, a subcommand a file.
#include <cstdio>
#include <exception>
#include <new>

#include "data/input_error.h"
#include "tools/options.h"

int main(int argc, char** argv) {
    using namespace jem;
    CLI::App app("Joint energy-based models: train a classifier that is also a generative model, measure it, sample from it.",
                 "jem_engine");
    app.require_subcommand(1);
    app.set_version_flag("--version", JEM_VERSION);
    Command chosen;
    const auto add = [&](const char* name, const char* help, Command (*add_command)(CLI::App&)) {
        CLI::App* sub = app.add_subcommand(name, help);
        const Command command = add_command(*sub);
        sub->callback([&chosen, command] { chosen = command; });
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
    try {
        return chosen();
    } catch (const InputError& e) {
        std::fprintf(stderr, "error: %s\n", e.what());
        return kExitUsage;
    } catch (const std::bad_alloc&) {
        std::fprintf(stderr, "error: out of memory. Lower --batch-size, --gen-batch-size, --buffer-size or --width.\n");
        return kExitFailed;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "error: %s\n", e.what());
        return kExitFailed;
    }
}
