// What an evaluation has measured so far, beside its results: one that was interrupted goes on from there.
#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace jem {

// One line of JSON a piece of work, appended when it is done: whatever is killed when, at most the last piece is lost.
class Journal {
public:
    Journal() = default;  // on no disk
    // Goes on with the file if it was begun with the same identity, that is for the same weights on the same images by the same
    // arithmetic; else begins a new one with the first piece. InputError where the folder may not be written.
    Journal(const std::filesystem::path& path, const std::string& identity);

    // The values of a piece of work that was done under this name; else those that `measure` gives, which are kept.
    std::vector<double> piece(const std::string& name, const std::function<std::vector<double>()>& measure);
    bool has(const std::string& name) const { return pieces_.contains(name); }
    // Pieces of an earlier call.
    size_t found() const { return found_; }
    // Once everything is done.
    void remove();

private:
    void begin();

    std::filesystem::path path_;
    std::string identity_;
    std::ofstream file_;
    std::map<std::string, std::vector<double>> pieces_;
    size_t found_ = 0;
};

}  // namespace jem
