// Autocorrelations of series whose answer is known.
#include "engine/sampling/chain_diagnostics.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/check.h"

namespace jem {
namespace {

// Chains x' = phi x + noise, side by side: their autocorrelation is phi^lag, its time (1 + phi) / (1 - phi).
Values autoregressive(double phi, int64_t steps, int64_t chains) {
    TestData data(3);
    Values all, x = data.normals(chains);
    for (int64_t k = 0; k < steps; ++k)
        for (double& one : x) {
            one = phi * one + std::sqrt(1 - phi * phi) * data.normal();
            all.push_back(10 + one);
        }
    return all;
}

}  // namespace

TEST_CASE("the_autocorrelation_time_is_that_of_an_autoregressive_chain") {
    for (const double phi : {0.0, 0.5, 0.8}) {
        INFO("phi " << phi);
        const Autocorrelation a = autocorrelation(autoregressive(phi, 8000, 20), 20);
        CHECK(a.time == doctest::Approx((1 + phi) / (1 - phi)).epsilon(0.05));
        CHECK(a.rho[0] == 1);
        CHECK(a.rho[1] == doctest::Approx(phi).epsilon(0.02));
        CHECK(a.enough);
    }
}

TEST_CASE("short_chains_are_called_so_and_still_ones_have_no_time") {
    CHECK_FALSE(autocorrelation(autoregressive(0.9, 100, 5), 5).enough);
    CHECK(std::isnan(autocorrelation(Values(20, 1.5), 2).time));
    CHECK(std::isnan(autocorrelation(Values(), 2).time));
}

TEST_CASE("quantiles_lie_between_neighbours") {
    CHECK(quantile({3, 1, 2}, 0) == 1);
    CHECK(quantile({3, 1, 2}, 1) == 3);
    CHECK(quantile({4, 1, 2, 3}, 0.5) == 2.5);
    CHECK(quantile({7}, 0.3) == 7);
}

}  // namespace jem
