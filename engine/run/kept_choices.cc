#include "engine/run/kept_choices.h"

#include <algorithm>
#include <cstring>

#include "data/is_there.h"
#include "engine/device/choices.h"
#include "engine/files/output_file.h"

namespace jem {
namespace {

// Every rank's text, in their order.
std::vector<std::string> gathered(Ranks& ranks, const std::string& mine) {
    std::vector<size_t> sizes(static_cast<size_t>(ranks.size()));
    sizes[static_cast<size_t>(ranks.rank())] = mine.size();
    ranks.all_gather(sizes.data(), sizeof(size_t));
    const size_t longest = *std::max_element(sizes.begin(), sizes.end());
    std::vector<std::string> texts;
    if (longest == 0) return std::vector<std::string>(sizes.size());
    std::vector<char> all(longest * sizes.size());
    std::memcpy(all.data() + longest * static_cast<size_t>(ranks.rank()), mine.data(), mine.size());
    ranks.all_gather(all.data(), longest);
    for (size_t r = 0; r < sizes.size(); ++r) texts.emplace_back(all.data() + longest * r, sizes[r]);
    return texts;
}

}  // namespace

std::vector<std::string> plan_as_kept(Device& device, const std::filesystem::path& file, const std::function<void()>& plan) {
    Ranks& ranks = device.communicator().ranks();
    Choices* const choices = device.choices();
    if (choices == nullptr) {
        together(ranks, plan);
        return {};
    }
    const bool first = ranks.rank() == 0;
    std::string kept;
    together(ranks, [&] {
        if (!first) return;
        if (is_there(file)) choices->keep(kept = read_file(file), file.string());
        plan();
    });
    if (ranks.size() > 1) {
        const std::string of_first = gathered(ranks, first ? choices->text() : "").front();
        together(ranks, [&] {
            if (first) return;
            choices->keep(of_first, file.string());
            plan();
        });
    }
    const std::vector<std::string> texts = gathered(ranks, choices->text()), departures = gathered(ranks, choices->departure());
    together(ranks, [&] {
        if (!first) return;
        for (const std::string& text : texts) choices->add(text);
        if (choices->text() == kept) return;
        create_folder(file.parent_path());
        write_file(file, choices->text());
    });
    std::vector<std::string> lines;
    for (size_t r = 0; first && r < departures.size(); ++r)
        if (!departures[r].empty()) lines.push_back((ranks.size() > 1 ? "Rank " + std::to_string(r) + ": " : "") + departures[r]);
    return lines;
}

}  // namespace jem
