// What the entry points of the emulated kernels have in common.
#pragma once

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "emulated/machine.h"
#include "secateur/core/linear.h"
#include "secateur/fragment24.h"
#include "secateur/output.h"

namespace emulation {

// Why the last call returned 1.
std::string& message();

inline int guarded(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::runtime_error& error) {
    message() = error.what();
    return 1;
  }
  return 0;
}

// Numbers from 0 on in an order that follows from the seed.
inline std::vector<int> shuffled(int count, uint64_t seed) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  return order;
}

// The thread blocks of a kernel that knows no clusters, in groups of neighbours that run at the same
// time: those who share sums are neighbours. `run(first, count)`, in an order that follows from the
// seed, as does the size of a group.
template <typename Run>
void for_each_group(int blocks, uint64_t seed, const Run& run) {
  const int most = 1 + static_cast<int>(seed % 4);
  for (const int group : shuffled((blocks + most - 1) / most, seed)) {
    run(group * most, std::min(most, blocks - group * most));
  }
}

inline void allow_packed24(const void* weight, int64_t rows, int64_t columns, Machine& machine) {
  using namespace secateur::fragment24;
  const int64_t bytes = unit_offset(panels(static_cast<int>(rows)), 0, steps(static_cast<int>(columns)));
  machine.allow(weight, bytes, false, true);
}

// Everything of a linear layer but its weight.
inline void allow_linear(const SecateurLinear& a, Machine& machine) {
  const int64_t out = secateur::output_columns(static_cast<int>(a.rows), a.silu_and_mul != 0);
  for (int64_t token = 0; token < a.tokens; ++token) {
    machine.allow(static_cast<const uint16_t*>(a.x) + token * a.x_stride, 2 * a.columns, false);
    if (a.residual) {
      machine.allow(static_cast<const uint16_t*>(a.residual) + token * a.residual_stride, 2 * out,
                    false);
    }
  }
  machine.allow(a.bias, 2 * a.rows, false);
  machine.allow(a.y, 2 * out * a.tokens, true);
  if (a.dependent) machine.launch_dependent();
}

}  // namespace emulation
