// What a device chose by time when it planned. Another time it may choose otherwise, and the last bits of a run with it: so choices are
// remembered from run to run in a file that all runs share, and each run keeps its own, which come first.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>

namespace jem {

struct PlanChoice {
    std::string choice;  // an engine's name, or what a convolution does of the ops around it
    double seconds = 0;  // as it was timed; 0: it was not
    auto operator<=>(const PlanChoice&) const = default;
};

class Choices {
public:
    // machine: what the choices hold for, "GPU | LIBRARY VERSION"; each key begins with it. file: JSON, need not exist; empty: nothing is
    // remembered beyond this object. One that is damaged counts as empty, and is told (files/messages.h).
    Choices(std::string machine, const std::string& file);

    // What a run keeps, as text() gave it, from the file of that name. Text that is damaged counts as empty; see departure.
    void keep(const std::string& text, const std::string& from);
    // Adds another device's, where this one has none.
    void add(const std::string& text) { run_.merge(entries_of(text)); }
    // For a run to keep: all that it kept, and all that was found or remembered since.
    std::string text() const;
    // One line, told as well: what a run kept and was chosen anew all the same. Empty: nothing.
    const std::string& departure() const { return departure_; }

    // key: all else that the choice depends on, readable. A run's own first, then the shared file's.
    std::optional<PlanChoice> find(const std::string& key);
    void remember(const std::string& key, const PlanChoice& choice);
    // For the run alone: what would be chosen otherwise another time.
    void remember_for_run(const std::string& key, const PlanChoice& choice);
    // The engine that was found under the key does not exist any more.
    void is_gone(const std::string& key);
    void forget(const std::string& key);
    // Adds what is new to what the shared file holds by now, in one rename: a reader sees the old file or the new one. False, and told,
    // where it cannot be written; nothing depends on it.
    bool save();

private:
    using Entries = std::map<std::string, PlanChoice>;
    static Entries entries_of(const std::string& text);  // throws where it is damaged
    static std::string text_of(const Entries& entries);
    Entries read() const;
    std::string full(const std::string& key) const { return machine_ + " | " + key; }
    void depart(const std::string& text);

    std::string machine_, file_, departure_;
    Entries run_, shared_, fresh_;
    std::set<std::string> kept_;  // keys that a run brought along
};

}  // namespace jem
