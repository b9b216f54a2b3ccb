// data/svhn.h where libmatio was not found.
#include "data/input_error.h"
#include "data/svhn.h"

namespace jem {

std::string missing_matio() {
    return "libmatio was not found when this was built. Run tools/setup, or install libmatio-dev, and build again";
}

std::string matio_version() { return ""; }

void read_svhn_set(ImageSet&, const std::vector<std::filesystem::path>& files) {
    throw InputError("cannot read data file '" + files.at(0).string() + "' (" + missing_matio() + ").");
}

}  // namespace jem
