// What collectives owe to the recorder and to dry runs, on any device.
#pragma once

#include <doctest/doctest.h>

#include "tests/on_device.h"

namespace jem {

// By both of two ranks, on a device that has joined them.
inline void check_recorded_collectives(Device& device) {
    OnDevice memory(device);
    const int rank = device.communicator().rank();
    const Array x = memory.real({1.0, 2.0}), all = memory.real(Values(4, rank + 1.0)), first = memory.real({rank + 5.0});
    const auto queue = [&] {
        device.communicator().all_reduce_sum(x);
        device.communicator().all_gather(all);
        device.communicator().broadcast(first);
    };
    device.begin_dry_run();
    queue();
    const WorkReport dry = device.end_dry_run();
    CHECK(dry.size() == 3);
    CHECK(dry.at("all_reduce_sum").launches == 1);
    check_equal("a dry run leaves values alone", memory.read(x), {1, 2});
    const auto graph = capture(device, queue);
    check_equal("recording leaves values alone", memory.read(x), {1, 2});
    CHECK(graph->launches() == 3);
    graph->replay();
    graph->replay();
    check_equal("two sums", memory.read(x), {4, 8});
    check_equal("gathered", memory.read(all), {1, 1, 2, 2});
    check_equal("rank 0's", memory.read(first), {5});
}

}  // namespace jem
