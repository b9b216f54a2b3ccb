#include "engine/device/host/host_communicator.h"

#include <algorithm>
#include <stdexcept>

namespace jem {
namespace {

constexpr size_t kPieceBytes = size_t{4} << 20;  // of a sum: enough to make latency cheap, small enough to stay in a cache

}  // namespace

HostCommunicator::HostCommunicator(HostStream& stream, Ranks& ranks)
    : Communicator(ranks),
      stream_(stream),
      received_(kPieceBytes / sizeof(double) + static_cast<size_t>(ranks.size())),
      padded_(received_.size()) {}

// Piece by piece: each rank receives everyone's values of its share, adds them in the ranks' order, and hands the sums round. Every
// value crosses the network twice however many ranks there are, and every rank ends with the same bits.
template <class T>
void HostCommunicator::sum(T* x, int64_t count) {
    const int64_t ranks = size(), most = std::max<int64_t>(1, static_cast<int64_t>(kPieceBytes / sizeof(T)) / ranks);
    T* received = reinterpret_cast<T*>(received_.data());
    for (int64_t first = 0; first < count; first += most * ranks) {
        const int64_t here = std::min(count - first, most * ranks), share = (here + ranks - 1) / ranks;
        const bool fits = here == share * ranks;
        T* piece = fits ? x + first : reinterpret_cast<T*>(padded_.data());
        if (!fits) std::fill(std::copy_n(x + first, here, piece), piece + share * ranks, T(0));
        this->ranks().all_to_all(received, piece, static_cast<size_t>(share) * sizeof(T));
        T* own = piece + rank() * share;
        for (int64_t i = 0; i < share; ++i) {
            double sum = 0;
            for (int64_t r = 0; r < ranks; ++r) sum += static_cast<double>(received[r * share + i]);
            own[i] = static_cast<T>(sum);
        }
        this->ranks().all_gather(piece, static_cast<size_t>(share) * sizeof(T));
        if (!fits) std::copy_n(piece, here, x + first);
    }
}

void HostCommunicator::all_reduce_sum(Array x) {
    stream_.submit("all_reduce_sum", {.bytes = 2.0 * static_cast<double>(x.bytes())}, [=, this] {
        if (x.type == DType::f64)
            sum(x.as<double>(), x.count);
        else
            sum(x.as<float>(), x.count);
    });
}

void HostCommunicator::all_gather(Array all) {
    if (all.count % size() != 0)
        throw std::logic_error("An array of " + std::to_string(all.count) + " values does not hold one slice a rank.");
    stream_.submit("all_gather", {.bytes = static_cast<double>(all.bytes())},
                   [=, this] { ranks().all_gather(all.data, all.bytes() / static_cast<size_t>(size())); });
}

void HostCommunicator::broadcast(Array x) {
    stream_.submit("broadcast", {.bytes = static_cast<double>(x.bytes())}, [=, this] { ranks().broadcast(x.data, x.bytes()); });
}

}  // namespace jem
