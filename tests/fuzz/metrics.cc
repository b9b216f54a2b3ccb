// A run's folder as it is resumed: the log, and config.json.
#include "engine/files/output_file.h"
#include "engine/run/run_folder.h"
#include "tests/fuzz/target.h"

JEM_FUZZ_TARGET(bytes) {
    using namespace jem;
    const RunFolder run(".");
    fuzz::file_of(bytes, "config.json");
    fuzz::reads([&] { run.read_config(); });
    fuzz::file_of(bytes, "metrics.jsonl");
    run.cut_metrics(7, 1);
    const std::string kept = read_file(run.metrics());
    run.cut_metrics(7, 1);
    fuzz::require(read_file(run.metrics()) == kept && kept.size() <= bytes.size() + 1);
}
