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

}  // namespace jem
