// What the engine has to say beside its results. It writes to no stream of its own: the program decides where this goes.
#pragma once

#include <functional>
#include <string>

namespace jem {

/// Who hears it, from now on; nobody, until a program has set it. Not while another thread tells.
void set_listener(std::function<void(const std::string& text)> listener);

/// text: one line, without its end.
void tell(const std::string& text);

/// A text for a terminal: control characters, which would steer it, become question marks, but for ends of lines and tabs. Names come out
/// of files that anybody may have written.
std::string without_controls(std::string text);

}  // namespace jem
