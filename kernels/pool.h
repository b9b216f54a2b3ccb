// What gathers, moves or drops values of an activation: pooling over windows, concatenation along channels, dropout.
#pragma once

#include <cstdint>

#include "kernels/qualifiers.h"
#include "kernels/random.h"
#include "kernels/state.h"
#include "kernels/tensor.h"

namespace jem {

enum class PoolKind { max, average };

// A window along one direction. Padding is at most half of the kernel, so that no window lies in it alone. Places along a direction are
// counted in 32 bits: a GPU's thread holds many of them.
struct PoolWindow {
    int kernel = 2, stride = 2, padding = 0;

    constexpr int64_t outputs(int64_t size) const { return (size + 2 * padding - kernel) / stride + 1; }
    // Places of the window of output i: begin .. end of the values, of `size` there are.
    JEM_HD int begin(int i) const { return i * stride > padding ? i * stride - padding : 0; }
    JEM_HD int end(int i, int size) const { return i * stride - padding + kernel < size ? i * stride - padding + kernel : size; }
    // Outputs whose windows hold place i: first .. past.
    JEM_HD int first(int i) const { return i + padding < kernel ? 0 : (i + padding - kernel) / stride + 1; }
    JEM_HD int past(int i, int outputs) const { return (i + padding) / stride + 1 < outputs ? (i + padding) / stride + 1 : outputs; }
};

struct Pooling {
    PoolKind kind = PoolKind::max;
    PoolWindow rows{}, columns{};
    bool count_padding = true;  // average: over the whole window, its padding taken as zeros; else over the values alone
};

// Where value (image, channel, row, column) of an activation lies.
struct Places {
    int64_t channels, height, width, block;

    // Of the first row and column; from one position to the next it is `block` values.
    JEM_HD int64_t begin(int64_t image, int64_t channel) const {
        return (image * (channels / block) + channel / block) * (height * width) * block + channel % block;
    }
    JEM_HD int64_t at(int64_t image, int64_t channel, int64_t position) const { return begin(image, channel) + position * block; }
    JEM_HD int64_t image(int64_t i) const { return i / (channels * height * width); }
    JEM_HD int64_t position(int64_t i) const { return i / block % (height * width); }
    JEM_HD int64_t channel(int64_t i) const { return i / (block * height * width) % (channels / block) * block + i % block; }
};

// What both directions know of a window: which of its values the maximum is, and what an average divides by. In: a type that R is made of.
template <class R, class In>
struct PoolWindows {
    const In* x;  // null where only averages are asked for
    Places in, out;
    Pooling how;

    JEM_HD int height() const { return static_cast<int>(in.height); }
    JEM_HD int width() const { return static_cast<int>(in.width); }
    // The position of the maximum in x of one image and channel: the first of equal ones, the last NaN before all else.
    JEM_HD int maximum(const In* plane, int row, int column) const {
        int best = how.rows.begin(row) * width() + how.columns.begin(column);
        R most = static_cast<R>(plane[best * in.block]);
        for (int h = how.rows.begin(row); h < how.rows.end(row, height()); ++h)
            for (int w = how.columns.begin(column); w < how.columns.end(column, width()); ++w) {
                const R v = static_cast<R>(plane[(h * width() + w) * in.block]);
                if (!(v > most) && v == v) continue;
                most = v;
                best = h * width() + w;
            }
        return best;
    }
    JEM_HD R divisor(int row, int column) const {
        if (how.count_padding) return static_cast<R>(how.rows.kernel * how.columns.kernel);
        return static_cast<R>((how.rows.end(row, height()) - how.rows.begin(row)) *
                              (how.columns.end(column, width()) - how.columns.begin(column)));
    }
};

// Item: kWidth neighbouring channels of one position of y, which are neighbours in x, too.
template <class R, class A, int kWidth>
struct Pool {
    A* y;
    PoolWindows<R, A> windows;

    JEM_HD void operator()(int64_t item) const {
        const Places& out = windows.out;
        const int64_t i = item * kWidth;
        const A* plane = windows.x + windows.in.begin(out.image(i), out.channel(i));
        const int position = static_cast<int>(out.position(i)), outputs = static_cast<int>(out.width);
        const int row = position / outputs, column = position % outputs;
        const PoolWindow &rows = windows.how.rows, &columns = windows.how.columns;
        const bool maximum = windows.how.kind == PoolKind::max;
        const A* first = plane + (rows.begin(row) * windows.width() + columns.begin(column)) * windows.in.block;
        R values[kWidth];  // the largest so far, a NaN before all else; or the sum
        for (int k = 0; k < kWidth; ++k) values[k] = maximum ? static_cast<R>(first[k]) : R(0);
        for (int h = rows.begin(row); h < rows.end(row, windows.height()); ++h)
            for (int w = columns.begin(column); w < columns.end(column, windows.width()); ++w) {
                const A* at = plane + (h * windows.width() + w) * windows.in.block;
                if (maximum)
                    for (int k = 0; k < kWidth; ++k) {
                        const R v = static_cast<R>(at[k]);
                        values[k] = v > values[k] || v != v ? v : values[k];
                    }
                else
                    for (int k = 0; k < kWidth; ++k) values[k] += static_cast<R>(at[k]);
            }
        const R divisor = maximum ? R(1) : windows.divisor(row, column);
        for (int k = 0; k < kWidth; ++k) y[i + k] = static_cast<A>(values[k] / divisor);
    }
};

// Item: kWidth neighbouring channels of one position of d_x, which are neighbours in d_y, too; each from the windows that hold it, in their
// order.
template <class R, class A, int kWidth>
struct PoolBackward {
    A* d_x;
    const A* d_y;
    PoolWindows<R, A> windows;

    JEM_HD void operator()(int64_t item) const {
        const Places &in = windows.in, &out = windows.out;
        const int64_t i = item * kWidth;
        const int64_t image = in.image(i), channel = in.channel(i);
        const A* from = d_y + out.begin(image, channel);
        const A* plane = windows.how.kind == PoolKind::max ? windows.x + in.begin(image, channel) : nullptr;
        const int position = static_cast<int>(in.position(i)), outputs = static_cast<int>(out.width);
        const int h = position / windows.width(), w = position % windows.width();
        const int past_row = windows.how.rows.past(h, static_cast<int>(out.height)), past_column = windows.how.columns.past(w, outputs);
        R sums[kWidth] = {};
        for (int row = windows.how.rows.first(h); row < past_row; ++row)
            for (int column = windows.how.columns.first(w); column < past_column; ++column) {
                for (int k = 0; k < kWidth; ++k) {
                    const R d = static_cast<R>(from[(row * outputs + column) * out.block + k]);
                    if (windows.how.kind == PoolKind::average)
                        sums[k] += d / windows.divisor(row, column);
                    else if (windows.maximum(plane + k, row, column) == position)
                        sums[k] += d;
                }
            }
        for (int k = 0; k < kWidth; ++k) d_x[i + k] = static_cast<A>(sums[k]);
    }
};

// Item: kWidth neighbouring channels of one position of the part, [N, C of the part, H, W], whose channels are first .. of the whole; they
// are neighbours there, too.
template <class A, int kWidth>
struct CopyChannels {
    A *part, *whole;
    Places of_part, of_whole;
    int64_t first;
    bool to_whole;

    JEM_HD void operator()(int64_t item) const {
        const int64_t i = item * kWidth;
        const int64_t there = of_whole.at(of_part.image(i), first + of_part.channel(i), of_part.position(i));
        if (to_whole)
            for (int k = 0; k < kWidth; ++k) whole[there + k] = part[i + k];
        else
            for (int k = 0; k < kWidth; ++k) part[i + k] = whole[there + k];
    }
};

struct DropoutSettings {
    double rate = 0;  // of the values that become 0; the others are divided by 1 - rate
    uint64_t seed = 0;
    int64_t layer = 0, pass = 0;  // each below 4096: they draw masks of their own
    int64_t first_image = 0;      // number of the first image in the job's batch: draws depend on it, not on the layout in memory
};

// Item: four channels of one place. The same of d_y is its backward pass.
template <class R, class A>
struct DropValues {
    A* y;
    const A* x;
    Places places;
    const IterationState* state;
    DropoutSettings how;
    float keep;  // 1 - rate
    R scale;     // 1 / keep

    JEM_HD static int64_t fours(int64_t channels) { return (channels + 3) / 4; }

    JEM_HD void operator()(int64_t i) const {
        const int64_t groups = fours(places.channels), positions = places.height * places.width;
        const int64_t group = i % groups, position = i / groups % positions, image = i / (groups * positions);
        // 32 bits number the values of a batch in fours, 24 the layer and the pass.
        const uint64_t salt = static_cast<uint64_t>(how.layer << 12 | how.pass) << 32;
        const auto number = static_cast<uint64_t>(how.first_image * positions * groups + i);
        const Random4 r = random4(how.seed, RandomStream::dropout, *state, state->step, salt | number);
        const auto drop = [&](int64_t k, uint32_t bits) {
            const int64_t channel = 4 * group + k;
            if (channel >= places.channels) return;
            const int64_t at = places.at(image, channel, position);
            y[at] = static_cast<A>(uniform_of(bits) < keep ? static_cast<R>(x[at]) * scale : R(0));
        };
        drop(0, r.v[0]), drop(1, r.v[1]), drop(2, r.v[2]), drop(3, r.v[3]);
    }
};

}  // namespace jem
