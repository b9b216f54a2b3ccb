// How text is shown to a person.
#pragma once

#include <cstddef>
#include <string>

namespace jem {

/// Whether lines may be drawn over: a terminal, and one that was not asked to go without (no-color.org, TERM=dumb).
bool understands_escapes(int descriptor);

/// "1:02:03", "4:05"; "-" for what is no time.
std::string duration_text(double seconds);

/// without_controls() of what is to stay on one line: ends of lines and tabs become '?', too.
std::string printable(std::string text);

/// At most so many characters of it, UTF-8 never cut in the middle of one.
std::string cut_to(const std::string& text, size_t characters);

}  // namespace jem
