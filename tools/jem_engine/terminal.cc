#include "tools/jem_engine/terminal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "engine/files/messages.h"

namespace jem {

bool understands_escapes(int descriptor) {
    const char *term = std::getenv("TERM"), *no_color = std::getenv("NO_COLOR");
    const bool plain = term == nullptr || std::string(term) == "dumb" || (no_color != nullptr && *no_color != 0);
    return isatty(descriptor) != 0 && !plain;
}

std::string duration_text(double seconds) {
    constexpr double kMost = 1e12;
    if (!std::isfinite(seconds) || seconds < 0 || seconds > kMost) return "-";
    const int64_t s = static_cast<int64_t>(std::llround(seconds));
    if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
    return fmt::format("{}:{:02}", s / 60, s % 60);
}

std::string printable(std::string text) {
    text = without_controls(std::move(text));
    for (char& c : text)
        if (c == '\n' || c == '\t') c = '?';
    return text;
}

std::string cut_to(const std::string& text, size_t characters) {
    size_t seen = 0;
    for (size_t i = 0; i < text.size(); ++i) {
        const bool begins = (static_cast<unsigned char>(text[i]) & 0xc0) != 0x80;
        if (begins && seen++ == characters) return text.substr(0, i);
    }
    return text;
}

}  // namespace jem
