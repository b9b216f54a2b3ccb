// How well energies, confidences and gradients tell the network's own images from strangers (SADA-JEM, Table 3, Table 4's histograms).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/evaluation/classification.h"
#include "engine/evaluation/detection.h"
#include "engine/evaluation/made_images.h"
#include "engine/evaluation/metric.h"

namespace jem {
namespace {

constexpr const char *kScores = "ood_scores.csv", *kHistogram = "ood_histogram.csv", *kRoc = "ood_roc.csv";
constexpr int kBins = 100;           // of log p(x), as in the paper
constexpr int64_t kRocPoints = 500;  // what a picture shows

// The scores of one set, by name; each higher where the image looks more like the network's own.
struct Scored {
    std::string set;
    std::vector<std::pair<std::string, std::vector<double>>> scores;
};

Scored scored(const std::string& set, const Predictions& p, const EvaluationSettings& s) {
    Scored out{set, {}};
    if (s.ood_px) out.scores.emplace_back("px", p.lse);
    if (s.ood_py) {
        out.scores.emplace_back("py", std::vector<double>());
        for (int64_t n = 0; n < p.count(); ++n) out.scores.back().second.push_back(classified(p, n).confidence);
    }
    if (s.ood_pxgrad) {
        out.scores.emplace_back("pxgrad", p.gradient_norms);
        for (double& v : out.scores.back().second) v = -v;
    }
    return out;
}

std::string scores_csv(const std::vector<Scored>& all) {
    std::string csv = "set,image";
    for (const auto& [name, values] : all[0].scores) csv += "," + name;
    csv += "\n";
    for (const Scored& one : all)
        for (size_t n = 0; n < one.scores[0].second.size(); ++n) {
            csv += fmt::format("{},{}", one.set, n);
            for (const auto& [name, values] : one.scores) csv += fmt::format(",{}", values[n]);
            csv += "\n";
        }
    return csv;
}

std::string histogram_csv(const std::vector<Scored>& all, Protocol protocol) {
    std::vector<std::vector<double>> lse;
    for (const Scored& one : all) lse.push_back(one.scores[0].second);
    std::vector<Histogram> of;
    if (protocol == Protocol::engine)
        of = histograms(lse, kBins);
    else
        for (const std::vector<double>& one : lse) of.push_back(histogram(one, kBins));
    std::string csv = "set,in_distribution,lower,upper,count,density\n";
    for (size_t i = 0; i < all.size(); ++i)
        for (size_t b = 0; b < of[i].counts.size(); ++b)
            csv += fmt::format("{},{},{},{},{},{}\n", all[i].set, i == 0 ? 1 : 0, of[i].edges[b], of[i].edges[b + 1], of[i].counts[b],
                               of[i].densities[b]);
    return csv;
}

MetricResult measure(Evaluation& e) {
    const EvaluationSettings& s = e.settings();
    std::vector<Scored> all = {scored(e.split(), e.predictions(), s)};
    for (const ImageSet& set : e.others())
        all.push_back(scored(set.name, e.predict(set.name, set.count(), [&](Predictor& by) { return by.images_of(set); }), s));
    for (const std::string& name : e.made()) {
        const MadeImages made(name, e.images(), e.first_images(e.images().count(), e.images().count()), s.seed);
        all.push_back(scored(name, e.predict(name, made.count(), [&](Predictor& by) { return made.source(by); }), s));
    }
    MetricResult result;
    nlohmann::ordered_json values = nlohmann::ordered_json::object();
    std::string roc = "set,score,false_positive_rate,true_positive_rate\n";
    for (size_t i = 1; i < all.size(); ++i) {
        nlohmann::ordered_json& of_set = values[all[i].set];
        of_set["images"] = all[i].scores[0].second.size();
        for (size_t k = 0; k < all[i].scores.size(); ++k) {
            const auto& [name, in] = all[0].scores[k];
            const std::vector<double>& out = all[i].scores[k].second;
            const Detection d = detection(in, out);
            of_set["auroc_" + name] = d.auroc;
            of_set["aupr_in_" + name] = d.aupr_in;
            of_set["aupr_out_" + name] = d.aupr_out;
            of_set["fpr95_" + name] = d.fpr95;
            for (const RocPoint& p : roc_curve(in, out, kRocPoints))
                roc += fmt::format("{},{},{},{}\n", all[i].set, name, p.false_positive_rate, p.true_positive_rate);
        }
    }
    result.values["ood"] = values;
    result.files = {{kScores, scores_csv(all)}, {kRoc, roc}};
    if (s.ood_px) result.files.emplace_back(kHistogram, histogram_csv(all, s.protocol));
    return result;
}

Cost cost(Evaluation& e) {
    double images = 0;
    for (const ImageSet& set : e.others()) images += static_cast<double>(set.count());
    for (const std::string& name : e.made()) images += static_cast<double>(MadeImages::count_of(name, e.images().count()));
    return e.settings().ood_pxgrad ? Cost{.forward = 0, .gradient = images} : Cost{.forward = images, .gradient = 0};
}

std::string missing(const Evaluation& e) {
    return e.others().empty() && e.made().empty() ? "no strangers were given: --ood-data NAME[:DIR]" : "";
}

}  // namespace

Metric ood_metric() {
    return {.name = "ood",
            .help = "how well log p(x), p(y|x) and |d log p(x) / dx| tell strangers, and ood_*.csv",
            .measure = measure,
            .file_names = {kScores, kHistogram, kRoc},
            .cost = cost,
            .missing = missing,
            .wants_gradients = [](const EvaluationSettings& s) { return s.ood_pxgrad; }};
}

}  // namespace jem
