// What an evaluation that was interrupted has measured. The file is begun as this program would begin it in half of the inputs.
#include "engine/evaluation/journal.h"

#include <cmath>

#include "tests/fuzz/target.h"

JEM_FUZZ_TARGET(bytes) {
    using namespace jem;
    std::filesystem::path file = fuzz::file_of(bytes);
    size_t found = 0;
    {
        Journal journal(file, "these weights");
        found = journal.found();
        journal.piece("one", [] { return std::vector<double>{1, std::nan("")}; });
        journal.piece("new", [] { return std::vector<double>{2}; });
    }
    Journal again(file, "these weights");
    fuzz::require(again.has("one") && again.has("new") && again.found() >= found);
}
