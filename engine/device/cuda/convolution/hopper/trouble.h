// Where a wait that does not end reports itself: in host memory that the device can write, which survives the trap.
#pragma once

namespace jem::hopper {

struct alignas(16) Trouble {
    unsigned barrier, block, thread, stage, parity, unused[3];
};
enum BarrierName : unsigned { kEmptyA = 1, kEmptyB, kFullA, kFullB, kGradEmpty, kGradFull };

}  // namespace jem::hopper
