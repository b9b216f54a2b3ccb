// What the engine has to say beside its results. It writes to no stream of its own: the program decides where this goes.
#pragma once

#include <functional>
#include <string>

namespace jem {

/// Who hears it, from now on; nobody, until a program has set it. Not while another thread tells.
void set_listener(std::function<void(const std::string& text)> listener);

/// text: one line, without its end.
void tell(const std::string& text);

}  // namespace jem
