// How instances of the two kernels are launched. One source file a kernel and value type includes
// this, so that they compile side by side.
#pragma once

#include <cuda_runtime.h>

#include "library/launch.h"
#include "low_rank/arguments.h"
#include "secateur/low_rank/down.h"
#include "secateur/low_rank/up.h"

namespace secateur::low_rank {

constexpr int max_threads = max_warps * warp_lanes;
// Two thread blocks share a multiprocessor, so that those of the second kernel find room beside the
// first's: 128 registers each.
template <typename Shape>
constexpr int blocks_per_sm = Shape::token_tiles <= 2 ? 2 : 1;

template <typename Value, typename Shape>
__global__ __launch_bounds__(max_threads, blocks_per_sm<Shape>) void down_kernel(
    const __grid_constant__ Down down) {
  extern __shared__ __align__(256) uint8_t shared[];
  run_down<Value, Shape>(down, static_cast<uint32_t>(__cvta_generic_to_shared(shared)));
}

template <typename Value, typename Shape, bool Sparse>
__global__ __launch_bounds__(max_threads, blocks_per_sm<Shape>) void up_kernel(
    const __grid_constant__ Up up) {
  extern __shared__ __align__(256) uint8_t shared[];
  run_up<Value, Shape, Sparse>(up, static_cast<uint32_t>(__cvta_generic_to_shared(shared)));
}

template <typename Value>
int launch_down(const SecateurLowRank& a, cudaStream_t stream) {
  Launch how{};
  how.blocks = down_blocks(a);
  how.threads = a.down_division.warps * warp_lanes;
  how.shared_bytes = static_cast<int>(down_shared_bytes(a));
  how.dependent = a.linear.dependent != 0;
  how.device = a.linear.device;
  how.stream = stream;
  int code = SECATEUR_BAD_LOW_RANK_TILES;
  with_shape(a.down_division.row_tiles, a.linear.tokens, [&](auto shape) {
    code = launch_kernel<down_kernel<Value, decltype(shape)>>(how, down_of(a));
  });
  return code;
}

// Always a dependent: the kernel in front is the first of the two, and the weights are older.
template <typename Value, bool Sparse>
int launch_up(const SecateurLowRank& a, cudaStream_t stream) {
  Launch how{};
  how.blocks = a.up_division.blocks;
  how.threads = a.up_division.warps * warp_lanes;
  how.shared_bytes = static_cast<int>(up_shared_bytes(a));
  how.dependent = true;
  how.device = a.linear.device;
  how.stream = stream;
  int code = SECATEUR_BAD_LOW_RANK_TILES;
  with_shape(a.up_division.row_tiles, a.linear.tokens, [&](auto shape) {
    code = launch_kernel<up_kernel<Value, decltype(shape), Sparse>>(how, up_of(a));
  });
  return code;
}

}  // namespace secateur::low_rank
