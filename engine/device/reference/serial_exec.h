// The four primitives as the plainest loops: the oracle's, one thread, no blocking, sums in double.
#pragma once

#include <utility>

#include "engine/device/host/host_stream.h"

namespace jem {

class SerialExec {
public:
    static constexpr int kPixelsPerItem = 4, kMostChannelsPerItem = 1;

    explicit SerialExec(HostStream& stream) : stream_(&stream) {}

    template <class F>
    void for_each(const char* label, int64_t count, F f) {
        stream_->submit(label, {}, [=] {
            for (int64_t i = 0; i < count; ++i) f(i);
        });
    }

    template <class F, class O, class... I>
    void for_each(const char* label, Layout l, F f, O out, I... in) {
        stream_->submit(label, {}, [=] {
            for (int64_t i = 0; i < l.count(); ++i) {
                const int64_t c = channel(l, i);
                f(out.at(i, c), in.at(i, c)...);
            }
        });
    }
    // Several outputs come as further Out operands.

    template <class F, class... I>
    void column_reduce(const char* label, Layout l, F f, I... in) {
        stream_->submit(label, {}, [=] {
            for (int64_t c = 0; c < l.channels(); ++c) {
                double sums[F::kSums] = {};
                for (int64_t n = 0; n < l.images(); ++n)
                    for (int64_t r = 0; r < l.rows; ++r) {
                        const int64_t i = ((n * l.blocks + c / l.block) * l.rows + r) * l.block + c % l.block;
                        add(sums, f, in.at(i, c)...);
                    }
                f.finish(c, sums);
            }
        });
    }

    template <class F, class... I>
    void reduce(const char* label, int64_t count, F f, I... in) {
        stream_->submit(label, {}, [=] {
            double sums[F::kSums] = {};
            for (int64_t i = 0; i < count; ++i) {
                double terms[F::kSums];
                f.map(terms, in.at(i, 0)...);
                for (int k = 0; k < F::kSums; ++k) sums[k] += terms[k];
            }
            f.finish(sums);
        });
    }

private:
    static int64_t channel(const Layout& l, int64_t i) { return i / (l.rows * l.block) % l.blocks * l.block + i % l.block; }

    template <class F, class R, class... Rest>
    static void add(double (&sums)[F::kSums], const F& f, R first, Rest... rest) {
        R terms[F::kSums];
        f.map(terms, first, rest...);
        for (int k = 0; k < F::kSums; ++k) sums[k] += static_cast<double>(terms[k]);
    }

    HostStream* stream_;
};

}  // namespace jem
