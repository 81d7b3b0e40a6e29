// How an instance of the tiles kernel is launched. One source file a value type includes this, so
// that they compile side by side.
#pragma once

#include <cuda_runtime.h>

#include "library/launch.h"
#include "secateur/tiles/block.h"
#include "sparse24_tiles/arguments.h"

namespace secateur::tiles {

template <typename Value, typename Shape>
__global__ __launch_bounds__(Shape::threads, Shape::blocks_per_sm) void kernel(
    const __grid_constant__ Problem problem) {
  extern __shared__ __align__(128) uint8_t shared[];
  run_block<Value, Shape>(problem, static_cast<uint32_t>(__cvta_generic_to_shared(shared)));
}

template <typename Value>
int launch_type(const SecateurSparse24Tiles& a, cudaStream_t stream) {
  int status = SECATEUR_BAD_TILE;
  with_shape(a.tile_rows, a.tile_tokens, [&](auto shape) {
    using S = decltype(shape);
    Launch how{};
    how.blocks = a.blocks;
    how.threads = S::threads;
    how.shared_bytes = shared_bytes(S::stage_bytes, static_cast<int>(a.stages));
    how.dependent = a.linear.dependent != 0;
    how.device = a.linear.device;
    how.stream = stream;
    status = launch_kernel<kernel<Value, S>>(how, problem_of(a));
  });
  return status;
}

}  // namespace secateur::tiles
