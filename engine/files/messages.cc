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
    constexpr unsigned char kDelete = 0x7f, kTwoBytes = 0xc2, kFirstOfOthers = 0xa0;  // U+0080 to U+009F are controls as well
    for (size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        if ((byte < ' ' && byte != '\n' && byte != '\t') || byte == kDelete) text[i] = '?';
        if (byte == kTwoBytes && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < kFirstOfOthers)
            text[i] = text[i + 1] = '?';
    }
    return text;
}

}  // namespace jem
