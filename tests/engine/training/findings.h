// What `jem_engine selftest` finds, as checks of a test; linked with golden.cc.
#pragma once

#include <doctest/doctest.h>

#include <vector>

#include "tests/engine/training/golden.h"
#include "tools/jem_engine/selftest/selftest.h"

namespace jem {

inline void check_finding(const selftest::Finding& f) { CHECK_MESSAGE(f.ok, f.name, ": ", f.detail); }

inline void check_all(const std::vector<selftest::Finding>& findings) {
    CHECK_FALSE(findings.empty());
    for (const selftest::Finding& f : findings) check_finding(f);
}

}  // namespace jem
