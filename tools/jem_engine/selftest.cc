// jem_engine selftest: on the user's own device every op, every kind of convolution and one training iteration, against the reference
// device in f64. Both run the same formulas (kernels/), so this finds what compilers, libraries, memory, layouts and recording
// get wrong on this machine; that the formulas are right is for the tests to show.
#include <fmt/format.h>

#include <algorithm>

#include "tools/jem_engine/options.h"
#include "tools/jem_engine/selftest/selftest.h"

namespace jem {
namespace {

using selftest::Finding;

struct SelftestOptions {
    CommonOptions common;
    std::string precision = "f32", conv_algorithm = name_of(ConvAlgorithm::automatic);
};

class Report {
public:
    explicit Report(bool print) : print_(print) {}

    void add(const Finding& f) {
        findings_.push_back(f);
        if (!print_) return;
        const std::string error = f.max_error > 0 ? fmt::format("  max error {:.1g}", f.max_error) : "";
        fmt::print("{:6}  {}{}{}\n", f.ok ? "ok" : "FAILED", f.name, error, f.ok ? "" : "  " + f.detail);
        std::fflush(stdout);
    }
    // An exception is a failure as well: whatever could not be run does not work here.
    template <class Body>
    void guarded(const std::string& name, Body&& body) {
        try {
            body();
        } catch (const std::exception& e) {
            add({.name = name, .ok = false, .max_error = 0, .detail = e.what()});
        }
    }
    int64_t failed() const {
        return std::count_if(findings_.begin(), findings_.end(), [](const Finding& f) { return !f.ok; });
    }
    const std::vector<Finding>& findings() const { return findings_; }

private:
    bool print_;
    std::vector<Finding> findings_;
};

int run(const SelftestOptions& o) {
    const auto device = make_device(o.common, o.precision);
    const auto reference = make_reference_device(DType::f64);
    const selftest::Limits limits = selftest::limits_of(o.precision);
    if (!o.common.quiet)
        fmt::print(stderr, "selftest: {} ({}) against the reference in f64; errors relative to each tensor's rms\n", device->name(),
                   device->description());

    Report report(!o.common.json);
    Settings settings = selftest::iteration_settings();
    std::vector<ConvAlgorithm> algorithms = {ConvAlgorithm::direct, ConvAlgorithm::automatic};
    if (o.conv_algorithm == name_of(ConvAlgorithm::own)) {
        algorithms = {ConvAlgorithm::own};
        settings.conv_algorithm = ConvAlgorithm::own;
        settings.image_size = 16;  // such kernels want 8 rows and columns, also behind a stride
    }
    for (const auto& cases : {selftest::op_cases(limits, selftest::usual_sizes()), selftest::convolution_cases(limits, algorithms)})
        for (const selftest::Case& c : cases) report.add(selftest::run_case(c, *device, *reference));
    report.guarded("iteration", [&] {
        for (const Finding& f : selftest::check_iteration(*device, *reference, make_network, settings, limits)) report.add(f);
    });
    report.guarded("repetition", [&] {
        for (const Finding& f : selftest::check_repetition(*device, make_network, settings)) report.add(f);
    });
    if (device->has_side_queue())
        report.guarded("overlap", [&] {
            CommonOptions in_order = o.common;
            in_order.overlap = "off";
            const auto other = make_device(in_order, o.precision);
            const auto bits = [&](Device& on) { return selftest::bits_of_iterations(on, make_network, settings); };
            report.add(selftest::identical("gradients of weights beside the way back change no bit", bits(*device), bits(*other)));
        });

    const int64_t failed = report.failed(), total = static_cast<int64_t>(report.findings().size());
    nlohmann::ordered_json json = {
        {"device", device->name()}, {"description", device->description()}, {"passed", total - failed}, {"failed", failed}};
    json["checks"] = nlohmann::ordered_json::array();
    for (const Finding& f : report.findings()) {
        json["checks"].push_back({{"name", f.name}, {"ok", f.ok}, {"max_error", f.max_error}});
        if (!f.ok) json["checks"].back()["detail"] = f.detail;
    }
    if (!o.common.json) fmt::print("{}: {} checks passed, {} failed\n", device->name(), total - failed, failed);
    print_result(o.common, json);
    return failed == 0 ? kExitDone : kExitFailed;
}

}  // namespace

Command add_selftest(CLI::App& app) {
    auto o = std::make_shared<SelftestOptions>();
    app.add_option("--precision", o->precision, "Arithmetic (f32|tf32|bf16; f64 on the reference)")
        ->check(CLI::IsMember({"f32", "tf32", "bf16", "f64"}))
        ->capture_default_str()
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app.add_option("--conv-algorithm", o->conv_algorithm,
                   "auto: every way to compute convolutions that is proven; own: with the engine's own kernels for Hopper GPUs (auto|own)")
        ->check(CLI::IsMember({"auto", "own"}))
        ->capture_default_str()
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    o->common.add_to(app);
    return [o] { return run(*o); };
}

}  // namespace jem
