#include "engine/device/cuda/convolution/search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <functional>
#include <optional>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>

#include "engine/device/cuda/convolution/trial.h"
#include "engine/device/cuda/runtime.h"
#include "engine/files/messages.h"

namespace jem {
namespace {

using cuda::check;
using EnginePtr = std::shared_ptr<const ConvEngine>;

constexpr const char* kNoEngine = "none";  // in what is remembered

struct Candidate {
    EnginePtr engine;
    size_t provider;
};
// Those that are worth a trial, the providers' first ones first; or the one that is remembered.
using Candidates = std::map<ConvPart, std::vector<Candidate>>;

// task(i) for every i < count, on all cores: compiling is most of what planning takes.
void in_parallel(size_t count, const std::function<void(size_t)>& task) {
    constexpr size_t kMostThreads = 16;
    const size_t threads = std::min({count, kMostThreads, size_t{std::max(1u, std::thread::hardware_concurrency())}});
    int gpu = 0;
    check(cudaGetDevice(&gpu), "ask for the current GPU");
    std::atomic<size_t> next{0};
    std::vector<std::exception_ptr> failures(threads);
    std::vector<std::jthread> workers;
    for (size_t t = 0; t < threads; ++t)
        workers.emplace_back([&, t] {
            try {
                check(cudaSetDevice(gpu), "use the GPU on another thread");
                for (size_t i = next++; i < count; i = next++) task(i);
            } catch (...) {
                failures[t] = std::current_exception();
            }
        });
    workers.clear();  // joins
    for (const std::exception_ptr& failure : failures)
        if (failure != nullptr) std::rethrow_exception(failure);
}

// What may be a part of the whole: it does nothing that is not wanted, and the rest are ops.
bool part_of(Fusion fusion, Fusion whole) {
    return fusion == Fusion::none || (pass_of(fusion) == pass_of(whole) && has_residual(fusion) == has_residual(whole) &&
                                      has_norm(fusion) <= has_norm(whole) && has_sums(fusion) <= has_sums(whole));
}

class Search {
public:
    Search(ConvPlanning& planning, const ConvShape& shape, const ConvOptions& options)
        : planning_(planning), shape_(shape), options_(options), images_(options.input == ConvInput::images) {}

    std::vector<PlannedBatch> choose() {
        std::vector<Batch> batches;
        for (const int64_t batch : options_.batches) batches.push_back({.plan = {.batch = batch, .backward = true}});
        for (const int64_t batch : options_.forward_only) batches.push_back({.plan = {.batch = batch, .backward = false}});
        if (planning_.on_device) find_candidates(batches);
        std::vector<PlannedBatch> out;
        for (Batch& b : batches) {
            if (planning_.on_device)
                choose_by_time(b);
            else
                choose_first(b);
            out.push_back(std::move(b.plan));
        }
        if (planning_.on_device) planning_.choices.save();
        return out;
    }

private:
    // Everything of one batch size while it is planned.
    struct Batch {
        PlannedBatch plan;
        Candidates candidates = {};
        Trial* trial = nullptr;
        std::map<ConvPart, bool> right = {};  // of fused engines, as far as they were looked at
        bool filled = false;
    };

    ConvProblem problem(const Batch& b, const ConvPart& part) const {
        ConvProblem problem = planning_.problem(shape_, b.plan.batch, options_.algorithm, part);
        problem.slope = static_cast<float>(options_.slope);
        return problem;
    }
    bool supported(const Batch& b, const ConvPart& part) const {
        const ConvProblem wanted = problem(b, part);
        return std::any_of(planning_.providers.begin(), planning_.providers.end(), [&](const auto& p) { return p->supports(wanted); });
    }

    // What is wanted -------------------------------------------------------------------------------------------------------------

    // Whatever is chosen.
    std::set<ConvPart> always_used(const PlannedBatch& p) const {
        std::set<ConvPart> used;
        if (images_) used.insert({ConvPass::forward, Fusion::none});  // its residual, which no network has, is an op
        if (p.backward) used.insert({ConvPass::backward_data, Fusion::none});
        return used;
    }

    // What will be called, with the ops around it, so that they are worth a choice.
    std::vector<Fusion> wholes_of(const PlannedBatch& p) const {
        const std::vector<ConvCall>& calls = options_.calls;
        std::set<Fusion> wanted;
        for (const ConvCall& call : calls) {
            wanted.insert(forward_with({}, call.residual));  // for where norm and sums are ops after all
            wanted.insert(forward_with(call.around, call.residual));
        }
        const auto called = [&](bool ConvFusion::*what) {
            return std::any_of(calls.begin(), calls.end(), [&](const ConvCall& c) { return c.around.*what; });
        };
        std::vector<Fusion> wholes;
        for (const Fusion f : kForwardFusions) {
            if (images_ && (has_norm(f) || has_residual(f))) continue;
            if (has_sums(f) && !p.backward) continue;  // those passes have no statistics of their batch
            if (calls.empty() || wanted.contains(f)) wholes.push_back(f);
        }
        if (!p.backward) return wholes;
        if (!images_ && (calls.empty() || (called(&ConvFusion::activation) && called(&ConvFusion::sums))))
            wholes.push_back(Fusion::leaky_backward_sums);
        wholes.push_back(Fusion::accumulate);
        return wholes;
    }

    // The one that is remembered, else all that there can be.
    std::vector<Fusion> parts_of(const Batch& b, Fusion whole) {
        std::vector<Fusion> parts = {Fusion::none};
        for (const Fusion f : kForwardFusions) parts.push_back(f);
        parts.insert(parts.end(), kBackwardFusions.begin(), kBackwardFusions.end());
        std::erase_if(parts, [&](Fusion f) { return !part_of(f, whole) || (f != Fusion::none && !supported(b, {pass_of(f), f})); });
        if (const auto choice = planning_.choices.find(whole_key(b, whole)))
            for (const Fusion f : parts)
                if (fusion_name(f) == choice->choice) return {f};
        return parts;
    }

    std::set<ConvPart> wanted_parts(const Batch& b) {
        std::set<ConvPart> wanted = always_used(b.plan);
        for (const Fusion whole : wholes_of(b.plan))
            for (const Fusion f : parts_of(b, whole)) wanted.insert({pass_of(whole), f});
        return wanted;
    }

    // Readable, and all that a choice depends on; files written with them are found again.
    std::string key(const Batch& b, const std::string& what, const ConvPart& part) const {
        const CudaPlanSettings& s = planning_.settings;
        std::string providers;
        for (const auto& p : planning_.providers)
            if (!p->key().empty() && p->supports(problem(b, part))) providers += " | " + p->key();
        return shape_.text() + " | " + what + " | batch " + std::to_string(b.plan.batch) + " | " + precision_name(s.precision) +
               (options_.algorithm == ConvAlgorithm::direct ? " | direct"
                : options_.algorithm == ConvAlgorithm::own  ? " | own"
                                                            : "") +
               (options_.slope == kLeakySlope ? "" : " | slope " + std::to_string(options_.slope)) +
               (s.nondeterministic ? " | nondeterministic" : " | deterministic") + " | at most " +
               std::to_string(s.workspace_limit() >> 20) + " MiB" + providers;
    }
    std::string whole_key(const Batch& b, Fusion whole) const {
        return key(b, std::string(pass_name(pass_of(whole))) + " or " + fusion_name(whole), {pass_of(whole)});
    }
    std::string part_key(const Batch& b, const ConvPart& part) const {
        return key(b, pass_name(part.pass) + std::string(" with ") + fusion_name(part.fusion), part);
    }

    // Candidates -----------------------------------------------------------------------------------------------------------------

    // Where a remembered engine is gone, the whole batch size is chosen anew.
    void find_candidates(std::vector<Batch>& batches) {
        std::vector<Batch*> all, anew;
        for (Batch& b : batches) all.push_back(&b);
        for (Batch* b : make_candidates(all)) {
            for (const ConvPart& part : wanted_parts(*b)) planning_.choices.forget(part_key(*b, part));
            for (const Fusion whole : wholes_of(b->plan)) planning_.choices.forget(whole_key(*b, whole));
            anew.push_back(b);
        }
        make_candidates(anew);
    }

    // All that may be wanted, made ready by all cores. Returns those that lack what is remembered.
    std::set<Batch*> make_candidates(const std::vector<Batch*>& batches) {
        struct Task {
            Batch* batch;
            ConvPart part;
            std::optional<std::string> engine;  // remembered
            size_t provider = 0, rank = 0;
        };
        std::vector<Task> tasks;
        for (Batch* b : batches) {
            b->candidates.clear();
            for (const ConvPart& part : wanted_parts(*b)) {
                const auto choice = planning_.choices.find(part_key(*b, part));
                if (choice && choice->choice == kNoEngine) continue;
                if (choice) {
                    tasks.push_back({b, part, choice->choice});
                    continue;
                }
                const ConvProblem wanted = problem(*b, part);
                for (size_t p = 0; p < planning_.providers.size(); ++p) {
                    if (!planning_.providers[p]->supports(wanted)) continue;
                    for (size_t rank = 0; rank < planning_.providers[p]->tries(wanted); ++rank)
                        tasks.push_back({b, part, std::nullopt, p, rank});
                }
            }
        }
        std::vector<Candidate> made(tasks.size());
        in_parallel(tasks.size(), [&](size_t i) {
            const Task& t = tasks[i];
            const ConvProblem wanted = problem(*t.batch, t.part);
            if (!t.engine) {
                made[i] = {planning_.providers[t.provider]->engine(wanted, t.rank), t.provider};
                return;
            }
            for (size_t p = 0; p < planning_.providers.size() && made[i].engine == nullptr; ++p)
                made[i] = {planning_.providers[p]->engine(wanted, *t.engine), p};
        });
        std::set<Batch*> lacking;
        for (size_t i = 0; i < tasks.size(); ++i) {
            const Task& t = tasks[i];
            if (made[i].engine != nullptr) {
                t.batch->candidates[t.part].push_back(std::move(made[i]));
            } else if (t.engine) {
                planning_.choices.is_gone(part_key(*t.batch, t.part));
                lacking.insert(t.batch);
            }
        }
        return lacking;
    }

    // Whether there is nothing left to choose.
    bool known(Batch& b) {
        const auto remembered = [&](const ConvPart& part) {
            return b.candidates[part].size() == 1 && planning_.choices.find(part_key(b, part)).has_value();
        };
        for (const ConvPart& part : always_used(b.plan))
            if (!remembered(part)) return false;
        for (const Fusion whole : wholes_of(b.plan)) {
            const std::vector<Fusion> parts = parts_of(b, whole);
            if (parts.size() != 1 || !remembered({pass_of(whole), parts.front()})) return false;
        }
        return true;
    }

    // Choosing -------------------------------------------------------------------------------------------------------------------

    EnginePtr first(const Batch& b, const ConvPart& part) const {
        const ConvProblem wanted = problem(b, part);
        for (const auto& provider : planning_.providers)
            if (provider->supports(wanted)) return provider->first(wanted);
        throw std::runtime_error("There is no engine for the convolution " + shape_.text() + ", " + pass_name(part.pass) +
                                 " (no provider supports it). Run with --device cpu.");
    }
    // By rule: the plain form of each pass, all else are ops.
    void choose_first(Batch& b) const {
        b.plan.engines[{ConvPass::forward}] = first(b, {ConvPass::forward});
        if (!b.plan.backward) return;
        for (const ConvPass pass : {ConvPass::backward_data, ConvPass::backward_weights}) b.plan.engines[{pass}] = first(b, {pass});
    }

    void choose_by_time(Batch& b) {
        size_t workspace = 0;
        std::set<WeightForm> forms;
        for (const auto& [part, candidates] : b.candidates)
            for (const Candidate& c : candidates) {
                workspace = std::max(workspace, c.engine->workspace_bytes());
                if (c.engine->weights() != WeightForm::plain) forms.insert(c.engine->weights());
            }
        const bool nothing_to_time = known(b);
        Trial trial(planning_.launcher, planning_.activation(), shape_, options_.slope, b.plan.batch, {forms.begin(), forms.end()},
                    workspace);
        if (!trial.possible() && !nothing_to_time) {
            tell("Too little GPU memory is free to time " + shape_.text() + " for batch " + std::to_string(b.plan.batch) +
                 ": the first engine is taken.");
            choose_first(b);
            for (const auto& [part, engine] : b.plan.engines)
                planning_.choices.remember_for_run(part_key(b, part), {.choice = engine->name(), .seconds = 0});
            for (const Fusion whole : wholes_of(b.plan))
                planning_.choices.remember_for_run(whole_key(b, whole), {.choice = fusion_name(Fusion::none), .seconds = 0});
            return;
        }
        b.trial = &trial;
        std::set<ConvPart> used = always_used(b.plan);
        for (const Fusion whole : wholes_of(b.plan)) {
            b.plan.best[whole] = fastest(b, whole);
            used.insert({pass_of(whole), b.plan.best[whole]});
        }
        for (const ConvPart& part : used) engine_of(b, part);
        std::erase_if(b.plan.engines, [&](const auto& entry) { return !used.contains(entry.first); });
        if (!trial.possible()) return;
        // Each once more: whatever a library loads at a first call is loaded before a phase is recorded.
        for (const auto& [part, engine] : b.plan.engines) run_whole(trial, *engine, part, part.fusion);
        trial.wait();
    }

    void begin_timing(Batch& b) {
        if (std::exchange(b.filled, true)) return;
        fill(*b.trial);
        if (std::exchange(planning_.told, true)) return;
        const std::string& file = planning_.settings.cache_file;
        tell("Timing the convolutions of this network on " + planning_.gpu + ", once" +
             (file.empty() ? "" : " (remembered in " + file + ")") + ".");
    }

    void fill(Trial& trial) const {
        trial.fill();
        for (const WeightForm form : trial.forms())
            write_weights(planning_.ops, form, trial.weights(form), trial.weights(WeightForm::plain), shape_);
    }

    // Which of its parts the convolution does itself: remembered, or the fastest in all, ops included, of those that compute the same.
    Fusion fastest(Batch& b, Fusion whole) {
        const ConvPass pass = pass_of(whole);
        std::vector<std::pair<Fusion, EnginePtr>> offered;
        const std::vector<Fusion> parts = parts_of(b, whole);
        for (const Fusion f : parts)
            if (EnginePtr engine = engine_of(b, {pass, f}); engine != nullptr) offered.push_back({f, std::move(engine)});
        if (parts.size() == 1 && offered.size() == 1) return parts.front();
        std::vector<std::pair<double, Fusion>> times;
        if (offered.size() > 1) begin_timing(b);
        for (const auto& [f, engine] : offered)
            times.push_back({offered.size() == 1 ? 0
                                                 : b.trial->seconds(
                                                       [&] {
                                                           run_whole(*b.trial, *engine, {pass, f}, whole);
                                                       },
                                                       INFINITY),
                             f});
        std::stable_sort(times.begin(), times.end(), [](const auto& x, const auto& y) { return x.first < y.first; });
        for (const auto& [seconds, f] : times) {
            if (f != Fusion::none && !right(b, {pass, f})) continue;
            planning_.choices.remember(whole_key(b, whole), {.choice = fusion_name(f), .seconds = seconds});
            return f;
        }
        return Fusion::none;
    }

    // The fastest engine, remembered or timed; null for a fused one that nobody offers.
    EnginePtr engine_of(Batch& b, const ConvPart& part) {
        if (const auto found = b.plan.engines.find(part); found != b.plan.engines.end()) return found->second;
        const std::string remembered_as = part_key(b, part);
        const std::vector<Candidate> candidates = std::move(b.candidates[part]);
        EnginePtr engine;
        if (candidates.size() == 1 && planning_.choices.find(remembered_as)) {
            engine = candidates.front().engine;
        } else {
            PlanChoice choice{.choice = kNoEngine, .seconds = 0};
            engine = fastest_of(b, part, candidates, choice);
            if (engine == nullptr && part.fusion == Fusion::none)
                engine = first(b, part);  // to be timed another time
            else
                planning_.choices.remember(remembered_as, choice);
        }
        return b.plan.engines[part] = engine;
    }

    EnginePtr fastest_of(Batch& b, const ConvPart& part, const std::vector<Candidate>& candidates, PlanChoice& choice) {
        // A slower one must be slower by more than the clock's noise before the providers' order is left.
        constexpr double kNoise = 0.98, kHopeless = 3;
        EnginePtr fastest, first_to_run;
        double best = INFINITY;
        if (candidates.size() > 1) begin_timing(b);
        for (const Candidate& c : candidates) {
            const auto run = [&] { run_whole(*b.trial, *c.engine, part, part.fusion); };
            double seconds = 0;
            try {
                if (candidates.size() > 1)
                    seconds = b.trial->seconds(run, kHopeless * best);
                else
                    run(), b.trial->wait();        // alone it needs no clock
            } catch (const std::runtime_error&) {  // it was planned but does not run: the next one
                continue;
            }
            if (first_to_run == nullptr && c.provider == 0) first_to_run = c.engine;
            // What bringing the weights into another form takes, at each update, is not timed.
            constexpr double kOtherForm = 0.95;
            if (seconds >= (c.engine->weights() == WeightForm::plain ? kNoise : kOtherForm) * best) continue;
            if (c.provider > 0) {
                const ConvPart plain{part.pass};
                const EnginePtr reference = part.fusion == Fusion::none ? first_to_run : engine_of(b, plain);
                if (reference == nullptr) continue;
                if (reference != c.engine && !agrees(b, *c.engine, part, *reference, plain, part.fusion)) continue;
            }
            best = seconds;
            choice = {.choice = c.engine->name(), .seconds = seconds};
            fastest = c.engine;
        }
        return fastest;
    }

    // Agreement ------------------------------------------------------------------------------------------------------------------

    // A fused engine is taken only if it gives, in place, what the convolution alone and the ops give.
    bool right(Batch& b, const ConvPart& part) {
        if (const auto known = b.right.find(part); known != b.right.end()) return known->second;
        const ConvPart plain{part.pass};
        return b.right[part] = agrees(b, *engine_of(b, part), part, *engine_of(b, plain), plain, part.fusion);
    }
    // And, as a run must repeat bit for bit, only if it gives the same bits each time, whatever it is marked as.
    bool agrees(Batch& b, const ConvEngine& engine, const ConvPart& part, const ConvEngine& plain, const ConvPart& plain_part,
                Fusion whole) {
        constexpr int kRepetitions = 4;
        Trial& trial = *b.trial;
        const std::vector<std::vector<float>> want = results(trial, plain, plain_part, whole), got = results(trial, engine, part, whole);
        const auto refuse = [&](const char* why) {
            tell(engine.name() + " (" + shape_.text() + ", " + (whole == Fusion::none ? pass_name(part.pass) : fusion_name(whole)) + ") " +
                 why + " and is not used.");
            return false;
        };
        for (size_t i = 0; i < want.size(); ++i)
            if (!agree(got[i], want[i], planning_.activation(), whole == Fusion::leaky_backward_sums && i == 0))
                return refuse(whole == Fusion::none ? "computes something else than the first engine"
                                                    : "computes something else than the unfused form");
        if (planning_.settings.nondeterministic) return true;
        const auto same_bits = [](const std::vector<float>& x, const std::vector<float>& y) {
            return std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
        };
        for (int i = 1; i < kRepetitions; ++i) {
            const std::vector<std::vector<float>> again = results(trial, engine, part, whole);
            if (!std::equal(got.begin(), got.end(), again.begin(), same_bits)) return refuse("gives other bits at another time");
        }
        return true;
    }

    // Of the whole, on the same operands each time: the pass's output, and what a norm beside it makes of the sums.
    std::vector<std::vector<float>> results(Trial& trial, const ConvEngine& engine, const ConvPart& part, Fusion whole) const {
        fill(trial);
        trial.copy(Trial::kY, Trial::kResidual, trial.y(Trial::kY).bytes());
        run_whole(trial, engine, part, whole);
        const auto flat = [](const Tensor& t) { return Array{t.data, t.type, t.count()}; };
        switch (part.pass) {
            case ConvPass::forward:
                if (!has_sums(whole)) return {trial.download(flat(trial.y(Trial::kY)))};
                return {trial.download(flat(trial.y(Trial::kY))), trial.download(trial.next_norm().mean),
                        trial.download(trial.next_norm().inv_std)};
            case ConvPass::backward_data:
                if (whole == Fusion::none) return {trial.download(flat(trial.x(Trial::kOtherX)))};
                return {trial.download(flat(trial.x(Trial::kOtherX))), trial.download(trial.norm().a), trial.download(trial.norm().b)};
            case ConvPass::backward_weights:
                break;
        }
        return {trial.download(whole == Fusion::none ? trial.weights(WeightForm::plain) : trial.weight_sum())};
    }

    // The whole by an engine that does a part of it, or all, and by the ops that do the rest. In place where the network calls it so:
    // the residual is y, the sum is the gradient of the weights.
    void run_whole(Trial& t, const ConvEngine& engine, const ConvPart& part, Fusion whole) const {
        Ops& ops = planning_.ops;
        const Fusion fusion = part.fusion;
        const Tensor x = t.x(Trial::kX), y = t.y(Trial::kY), other_x = t.x(Trial::kOtherX), residual = t.y(Trial::kResidual);
        ConvPointers p = pointers_to(x.data, t.weights(WeightForm::plain).data, y.data);
        p[ConvRole::bias] = t.of_output(Trial::kBias).data;
        p[ConvRole::residual] = y.data;
        p[ConvRole::scale] = t.norm().scale.data;
        for (const WeightForm form : t.forms()) p[role_of(form)] = t.weights(form).data;
        switch (part.pass) {
            case ConvPass::forward: {
                if (has_norm(fusion)) {
                    ops.norm_shift(t.of_input(Trial::kShift), t.norm());
                    p[ConvRole::shift] = t.of_input(Trial::kShift).data;
                } else if (has_norm(whole)) {
                    ops.norm_leaky(other_x, x, t.norm());
                    p[ConvRole::x] = other_x.data;
                }
                const Array sums = t.of_channel(Trial::kSums, 2 * shape_.out_channels);
                p.give_sums(sums);
                p[ConvRole::centre] = t.next_parameters().running_mean.data;
                engine.run(p, t.workspace());
                if (fusion == Fusion::none && whole != Fusion::none)
                    ops.add_bias(y, y, t.of_output(Trial::kBias), has_residual(whole) ? &residual : nullptr);
                if (has_sums(fusion))
                    ops.batch_norm_of_sums(t.next_norm(), sums, y, t.next_parameters(), RunningStatistics::keep, nullptr);
                else if (has_sums(whole))
                    ops.batch_norm_statistics(t.next_norm(), y, t.next_parameters(), RunningStatistics::keep, nullptr);
                break;
            }
            case ConvPass::backward_data: {
                const Array sums = t.of_channel(Trial::kSums, 2 * shape_.in_channels);
                p.give_sums(sums);
                p[ConvRole::x] = other_x.data;
                p[ConvRole::norm_input] = x.data;
                p[ConvRole::centre] = t.norm().mean.data;
                p[ConvRole::shift] = t.norm().beta.data;
                engine.run(p, t.workspace());
                if (fusion == Fusion::leaky_backward_sums) {
                    ops.norm_backward_of_sums(t.norm(), {}, {}, sums, x);
                    ops.norm_backward(other_x, other_x, x, t.norm(), nullptr);
                } else if (whole == Fusion::leaky_backward_sums) {
                    ops.norm_backward_sums(t.norm(), {}, {}, other_x, x);
                    ops.norm_leaky_backward(other_x, other_x, x, t.norm(), nullptr);
                }
                break;
            }
            case ConvPass::backward_weights:
                if (fusion == Fusion::accumulate) p[ConvRole::w] = p[ConvRole::accumulated_w] = t.weight_sum().data;
                engine.run(p, t.workspace());
                if (fusion == Fusion::none && whole != Fusion::none) ops.accumulate(t.weight_sum(), t.weights(WeightForm::plain));
                break;
        }
    }

    ConvPlanning& planning_;
    const ConvShape& shape_;
    const ConvOptions& options_;
    bool images_;  // nothing stands in front of it
};

}  // namespace

ConvProblem ConvPlanning::problem(const ConvShape& shape, int64_t batch, ConvAlgorithm algorithm, const ConvPart& part) const {
    return {.shape = shape,
            .batch = batch,
            .pass = part.pass,
            .fusion = part.fusion,
            .precision = settings.precision,
            .algorithm = algorithm,
            .nondeterministic = settings.nondeterministic,
            .workspace_limit = settings.workspace_limit()};
}

std::vector<PlannedBatch> choose_engines(ConvPlanning& planning, const ConvShape& shape, const ConvOptions& options) {
    return Search(planning, shape, options).choose();
}

}  // namespace jem
