#include "engine/files/messages.h"

#include <utility>

namespace jem {
namespace {

std::function<void(const std::string&)>& listener() {
    static std::function<void(const std::string&)> one;
    return one;
}

}  // namespace

void set_listener(std::function<void(const std::string&)> one) { listener() = std::move(one); }

void tell(const std::string& text) {
    if (listener()) listener()(text);
}

std::string without_controls(std::string text) {
    constexpr char kDelete = 0x7f;
    for (char& c : text)
        if ((static_cast<unsigned char>(c) < ' ' && c != '\n' && c != '\t') || c == kDelete) c = '?';
    return text;
}

}  // namespace jem
