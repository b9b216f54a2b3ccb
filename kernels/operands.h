// Operands of the primitives: how element i (of channel c) is read or written. Compute is in float, or double where the storage is
// double. within(c): an equivalent operand for the channels of one block, from c on, that is cheap to read in a loop.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/qualifiers.h"

namespace jem {

template <class T>
struct In {  // read
    const T* data;
    JEM_HD T at(int64_t i, int64_t) const { return data[i]; }
    JEM_HD In within(int64_t) const { return *this; }
};

template <class T>
struct Out {  // written, or read and written
    T* data;
    JEM_HD T& at(int64_t i, int64_t) const { return data[i]; }
    JEM_HD Out within(int64_t) const { return *this; }
};

template <class T>
struct PerChannel {  // read, one value a channel
    const T* data;
    JEM_HD T at(int64_t, int64_t c) const { return data[c]; }
    JEM_HD PerChannel within(int64_t) const { return *this; }
};

template <class T>
struct Zero {  // an operand that is not there
    JEM_HD T at(int64_t, int64_t) const { return T(0); }
    JEM_HD Zero within(int64_t) const { return *this; }
};

// The channel's value of image 0, row 0, as BatchNormStatistics shifts by it.
template <class T>
struct FirstOfChannel {
    const T* data;
    int64_t rows, block;
    JEM_HD T at(int64_t, int64_t c) const { return data[offset(c)]; }
    JEM_HD PerChannel<T> within(int64_t c) const { return {data + (offset(c) - c)}; }
    JEM_HD int64_t offset(int64_t c) const { return c / block * rows * block + c % block; }
};

// What an operand holds, and what is computed in.
template <class O>
using Element = std::decay_t<decltype(std::declval<O>().at(0, 0))>;
template <class O>
using Real = std::conditional_t<std::is_same_v<Element<O>, double>, double, float>;

}  // namespace jem
