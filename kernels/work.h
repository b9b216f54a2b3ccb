// What is launched, counted: the work of one launch, and the sums by label that a profile or a dry run answers with.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace jem {

// Of one launch; 0 where an op does not know.
struct Work {
    double bytes = 0;  // read and written by the operands
    double flops = 0;
    const char* shape = nullptr;  // the case of an op that has several; kept by address while the op may run
};

struct WorkSum {
    int64_t launches = 0;
    double seconds = 0;  // in a dry run: predicted from the GPU's peaks where they are known, else 0
    double bytes = 0, flops = 0;
};

struct WorkRow : WorkSum {
    std::map<std::string, WorkSum> by_shape;  // the same apart, of ops that name a shape

    void add(const Work& work, double seconds) {
        add_to(*this, work, seconds);
        if (work.shape != nullptr) add_to(by_shape[work.shape], work, seconds);
    }
    // Of a launch that was added before, once its time is known.
    void add_seconds(const char* shape, double seconds) {
        this->seconds += seconds;
        if (shape != nullptr) by_shape[shape].seconds += seconds;
    }

private:
    static void add_to(WorkSum& sum, const Work& work, double seconds) {
        ++sum.launches;
        sum.seconds += seconds;
        sum.bytes += work.bytes;
        sum.flops += work.flops;
    }
};

using WorkReport = std::map<std::string, WorkRow>;  // by label

}  // namespace jem
