// Who computes convolutions on a GPU. A library, or kernels of the project's own, is one provider of a list (library_plans.cc): the
// search (search.h) and what it remembers know none of them. The first of the list is what the others must agree with.
#pragma once

#include <memory>
#include <string>

#include "engine/device/cuda/convolution/problem.h"

namespace jem {

// One way to compute a problem, decided in every detail.
class ConvEngine {
public:
    virtual ~ConvEngine() = default;
    // The same for the same engine and settings, begins with its provider's: "cudnn eng67 k2=11 k6=0".
    virtual std::string name() const = 0;
    virtual size_t workspace_bytes() const = 0;
    virtual WeightForm weights() const { return WeightForm::plain; }  // of the passes that read any
    // Queues it. Allocates nothing on the GPU, decides nothing, waits for nothing: it may be recorded. Throws std::runtime_error.
    virtual void run(const ConvPointers& pointers, std::byte* workspace) const = 0;
};

// It outlives its engines. Several threads ask it at once.
class ConvProvider {
public:
    virtual ~ConvProvider() = default;
    // With its version: all that is remembered holds for it. "cudnn 91900"; empty where only some problems' choices depend on it (key).
    virtual std::string name() const { return {}; }
    // The same of those that it supports.
    virtual std::string key() const { return {}; }
    // Whether it may have engines for that, worth the time that trying them takes.
    virtual bool supports(const ConvProblem& problem) const = 0;
    // How many of its ranking are tried, which begins with the one that it thinks the fastest.
    virtual size_t tries(const ConvProblem& problem) const = 0;
    // Null where it has none of that rank, or refuses it after all.
    virtual std::unique_ptr<ConvEngine> engine(const ConvProblem& problem, size_t rank) = 0;
    // Null where there is none of that name (any more).
    virtual std::unique_ptr<ConvEngine> engine(const ConvProblem& problem, const std::string& name) = 0;
    // The first of its ranking that it does not refuse, without a trial, or a GPU at hand. Throws, with every refusal, where there is none.
    virtual std::unique_ptr<ConvEngine> first(const ConvProblem& problem) = 0;
};

}  // namespace jem
