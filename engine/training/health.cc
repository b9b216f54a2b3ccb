#include "engine/training/health.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "engine/evaluation/classification.h"

namespace jem {
namespace {

constexpr size_t kMostClasses = 10;  // whose shares are listed one by one

}  // namespace

nlohmann::ordered_json Health::json() const {
    nlohmann::ordered_json out = {{"energy_real", energy_real}};
    if (energy_sampled) out["energy_sampled"] = *energy_sampled;
    if (energy_noise) out["energy_noise"] = *energy_noise;
    if (buffer_age) out["buffer_age"] = *buffer_age;
    if (!buffer_classes.empty()) out["buffer_classes"] = buffer_classes;
    return out;
}

double mean_energy(const Predictions& p) {
    return -std::accumulate(p.lse.begin(), p.lse.end(), 0.0) / static_cast<double>(std::max<size_t>(1, p.lse.size()));
}

std::vector<double> class_shares(const Predictions& p) {
    std::vector<double> shares(static_cast<size_t>(p.classes));
    for (int64_t n = 0; n < p.count(); ++n) shares[static_cast<size_t>(classified(p, n).best)] += 1 / static_cast<double>(p.count());
    return shares;
}

double mean_age(std::span<const int32_t> births, int64_t now) {
    double sum = 0;
    for (const int32_t birth : births) sum += static_cast<double>(now - birth);
    return births.empty() ? 0 : sum / static_cast<double>(births.size());
}

std::string health_line(const nlohmann::ordered_json& line, int64_t epochs, const std::string& held_out) {
    const auto number = [&](const std::string& key) {
        const auto found = line.find(key);
        return found != line.end() && found->is_number() ? std::optional(found->get<double>()) : std::nullopt;
    };
    std::string text = fmt::format("epoch {} of {}:", static_cast<int64_t>(number("epoch").value_or(0)) + 1, std::max<int64_t>(1, epochs));
    if (const auto v = number(held_out + "_accuracy")) text += fmt::format(" {} accuracy {:.1f} %", held_out, 100 * *v);
    if (const auto v = number("energy_real")) text += fmt::format("; energies: real {:.2f}", *v);
    if (const auto v = number("energy_sampled")) text += fmt::format(", sampled {:.2f}", *v);
    if (const auto v = number("energy_noise")) text += fmt::format(", noise {:.2f}", *v);
    if (const auto v = number("sgld_grad_norm")) text += fmt::format("; gradient at x {:.3g}", *v);
    if (const auto v = number("chain_way")) text += fmt::format(", way {:.2g}", *v);
    if (const auto v = number("clamped")) text += fmt::format(", clamped {:.1f} %", 100 * *v);
    if (const auto v = number("buffer_age")) text += fmt::format("; buffer's age {:.0f}", *v);
    const auto classes = line.find("buffer_classes");
    if (classes == line.end() || !classes->is_array() || classes->empty()) return text;
    const std::vector<double> shares = classes->get<std::vector<double>>();
    if (shares.size() > kMostClasses) {
        const auto [least, most] = std::minmax_element(shares.begin(), shares.end());
        return text + fmt::format(", its classes {:.1f} to {:.1f} %", 100 * *least, 100 * *most);
    }
    text += ", its classes";
    for (const double share : shares) text += fmt::format(" {:.0f}", 100 * share);
    return text + " %";
}

}  // namespace jem
