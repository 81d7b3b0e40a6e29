// How an instance of the wide kernel is launched. One source file a value type includes this, so
// that they compile side by side.
#pragma once

#include <cuda_runtime.h>

#include "library/launch.h"
#include "secateur/wide/block.h"
#include "sparse24_wide/arguments.h"

namespace secateur::wide {

template <typename Value, typename Shape>
__global__ __launch_bounds__(Shape::threads, blocks_per_sm<Shape>) void kernel(
    const __grid_constant__ Problem problem) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (device::has_warpgroups) {
    run_block<Value, Shape>(problem, device::shared_address(shared));
  } else {
    __trap();  // nobody launches it
  }
}

template <typename Value>
int launch(const SecateurSparse24Wide& a, const Problem& problem, cudaStream_t stream) {
  int code = SECATEUR_BAD_WIDE_TILE;
  with_shape(a.warpgroups, a.panels, a.tile_tokens, [&](auto shape) {
    using S = decltype(shape);
    Launch how{};
    how.blocks = a.blocks;
    how.threads = S::threads;
    how.shared_bytes = shared_bytes<S>(a.stages);
    how.cluster = problem.cluster.size();
    how.dependent = a.linear.dependent != 0;
    how.device = a.linear.device;
    how.stream = stream;
    code = launch_kernel<kernel<Value, S>>(how, problem);
  });
  return code;
}

}  // namespace secateur::wide
