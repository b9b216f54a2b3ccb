#include "tools/jem_engine/sample/diagnostics.h"

#include <fmt/format.h>

#include <cmath>

namespace jem {
namespace {

double mean(const std::vector<double>& values) {
    double sum = 0;
    for (const double v : values) sum += v;
    return sum / static_cast<double>(values.size());
}

double deviation(const std::vector<double>& values) {
    const double centre = mean(values);
    double sum = 0;
    for (const double v : values) sum += (v - centre) * (v - centre);
    return std::sqrt(sum / static_cast<double>(values.size()));
}

}  // namespace

void ChainDiagnostics::add(const ChainCourse& course, int64_t chains, int64_t of) {
    const int64_t rows = std::ssize(course.values) / of, moves = std::ssize(course.accepted) / of;
    energies_.resize(static_cast<size_t>(rows));
    norms_.resize(course.gradient_norms.size());
    accepted_steps_.resize(static_cast<size_t>(moves));
    for (int64_t k = 0; k < rows; ++k)
        for (int64_t c = 0; c < chains; ++c) energies_[static_cast<size_t>(k)].push_back(-course.values[static_cast<size_t>(k * of + c)]);
    for (size_t k = 0; k < norms_.size(); ++k) norms_[k] += course.gradient_norms[k];
    for (int64_t k = 0; k < moves; ++k)
        for (int64_t c = 0; c < chains; ++c) {
            const int32_t moved = course.accepted[static_cast<size_t>(k * of + c)];
            accepted_steps_[static_cast<size_t>(k)] += moved;
            accepted_ += moved;
            ++proposed_;
        }
    ++batches_;
    chains_ += static_cast<double>(chains);
}

Autocorrelation ChainDiagnostics::mixing() const {
    std::vector<double> values;
    for (size_t k = energies_.size() / 2; k < energies_.size(); ++k) values.insert(values.end(), energies_[k].begin(), energies_[k].end());
    return autocorrelation(values, static_cast<int64_t>(chains_));
}

std::string ChainDiagnostics::csv(const Autocorrelation& mixing) const {
    const std::vector<double>& rho = mixing.rho;
    std::string text =
        "step,energy_mean,energy_std,energy_q05,energy_q25,energy_median,energy_q75,energy_q95,gradient_norm,acceptance,autocorrelation\n";
    for (size_t k = 0; k < energies_.size(); ++k) {
        const std::vector<double>& e = energies_[k];
        text += fmt::format("{},{:.9g},{:.9g}", k, mean(e), deviation(e));
        for (const double q : {0.05, 0.25, 0.5, 0.75, 0.95}) text += fmt::format(",{:.9g}", quantile(e, q));
        text += k < norms_.size() ? fmt::format(",{:.9g}", norms_[k] / batches_) : ",";
        text += k > 0 && k <= accepted_steps_.size() ? fmt::format(",{:.9g}", accepted_steps_[k - 1] / chains_) : ",";
        text += k < rho.size() ? fmt::format(",{:.9g}\n", rho[k]) : ",\n";
    }
    return text;
}

nlohmann::ordered_json ChainDiagnostics::json(const Autocorrelation& mixing) const {
    nlohmann::ordered_json json = nlohmann::ordered_json::object();
    if (traced()) {
        json["energy_start"] = mean(energies_.front());
        json["energy_end"] = mean(energies_.back());
        if (std::isfinite(mixing.time)) json["autocorrelation_time"] = mixing.time;
        json["long_enough"] = mixing.enough;
    }
    if (judged()) json["acceptance"] = acceptance();
    return json;
}

std::string ChainDiagnostics::text(const Autocorrelation& mixing) const {
    std::string text;
    if (traced()) {
        text += fmt::format("energy    {:.4f} at the start, {:.4f} at the end\n", mean(energies_.front()), mean(energies_.back()));
        if (std::isfinite(mixing.time))
            text += fmt::format("autocorrelation time of the energy, later half  {:.1f} steps{}\n", mixing.time,
                                mixing.enough ? "" : " (rough: the chains are shorter than 50 of these)");
    }
    if (judged()) text += fmt::format("accepted  {:.4f} of the proposals\n", acceptance());
    return text;
}

}  // namespace jem
