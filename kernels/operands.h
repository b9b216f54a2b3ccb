// Operands of the element-wise primitive: how element i (of channel c) is read or written.
// Compute is in float, or double where the storage is double.
#pragma once

#include <cstdint>

#include "kernels/host_device.h"

namespace jem {

template <class T>
struct In {  // read
    const T* data;
    JEM_HD T at(int64_t i, int64_t) const { return data[i]; }
};

template <class T>
struct Out {  // written, or read and written
    T* data;
    JEM_HD T& at(int64_t i, int64_t) const { return data[i]; }
};

template <class T>
struct PerChannel {  // read, one value a channel
    const T* data;
    JEM_HD T at(int64_t, int64_t c) const { return data[c]; }
};

template <class T>
struct Zero {  // an operand that is not there
    JEM_HD T at(int64_t, int64_t) const { return T(0); }
};

// The channel's value of image 0, row 0, as BatchNormStatistics shifts by it.
template <class T>
struct FirstOfChannel {
    const T* data;
    int64_t rows, block;
    JEM_HD T at(int64_t, int64_t c) const { return data[c / block * rows * block + c % block]; }
};

}  // namespace jem
