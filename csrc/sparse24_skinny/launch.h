// How an instance of the skinny kernel is launched. One source file a value type includes this, so
// that they compile side by side.
#pragma once

#include <cuda_runtime.h>

#include "library/launch.h"
#include "secateur/skinny/block.h"
#include "sparse24_skinny/arguments.h"

namespace secateur::skinny {

// Two thread blocks share a multiprocessor where the sums leave room for that: 96 registers each.
template <typename Shape>
constexpr int blocks_per_sm = Shape::row_tiles * Shape::token_tiles <= 8 ? 2 : 1;

template <typename Shape>
constexpr int max_threads = (max_warps(Shape::row_tiles, Shape::token_tiles) + 1) * warp_lanes;

template <typename Value, typename Shape>
__global__ __launch_bounds__(max_threads<Shape>, blocks_per_sm<Shape>) void kernel(
    const __grid_constant__ Problem problem) {
  extern __shared__ __align__(128) uint8_t shared[];
  run_block<Value, Shape, device::has_bulk_copies>(
      problem, device::shared_address(shared));
}

template <typename Value, typename Shape>
int launch(const Problem& problem, bool dependent, int device, cudaStream_t stream) {
  Launch how{};
  how.blocks = problem.schedule.blocks;
  how.threads = (problem.warps + 1) * warp_lanes;
  how.shared_bytes =
      shared_bytes(problem.warps, Shape::row_tiles, Shape::token_tiles, problem.stages,
                   problem.cluster);
  how.cluster = problem.cluster;
  how.dependent = dependent;
  how.device = device;
  how.stream = stream;
  return launch_kernel<kernel<Value, Shape>>(how, problem);
}

template <typename Value>
int launch_shape(const Problem& problem, int row_tiles, bool dependent, int device,
                 cudaStream_t stream) {
  int code = SECATEUR_BAD_TILES;
  with_shape(row_tiles, problem.output.tokens, [&](auto shape) {
    code = launch<Value, decltype(shape)>(problem, dependent, device, stream);
  });
  return code;
}

}  // namespace secateur::skinny
