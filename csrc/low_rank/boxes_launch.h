// How instances of the two kernels that fetch boxes are launched, and their maps.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "library/launch.h"
#include "library/tensor_map.h"
#include "low_rank/arguments.h"
#include "secateur/low_rank/boxes/down.h"
#include "secateur/low_rank/boxes/up.h"

namespace secateur::low_rank {

// Two thread blocks share a multiprocessor, one of each kernel, with 96 registers. With many row
// tiles, or gate and up rows, the second takes 128, as for 512 threads: the first leaves that many,
// unless it has four row tiles. For fp16 and 16 tokens it takes more.
template <typename Shape, bool Gated>
constexpr bool up_is_small = Shape::row_tiles <= 2 && !Gated;
template <typename Value, typename Shape>
constexpr bool up_is_large =
    std::is_same_v<Value, Fp16> && Shape::row_tiles > 2 && Shape::token_tiles == 2;
template <typename Value, typename Shape, bool Gated>
constexpr int up_threads =
    up_is_small<Shape, Gated> || up_is_large<Value, Shape> ? boxes::threads : 512;
template <typename Shape, bool Gated>
constexpr int up_blocks_per_sm = up_is_small<Shape, Gated> ? 2 : 1;

template <typename Value, typename Shape>
__global__ __launch_bounds__(boxes::threads, 2) void box_down_kernel(
    const __grid_constant__ boxes::BoxDown problem) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (device::has_bulk_copies) {
    boxes::run_down<Value, Shape>(problem, device::shared_address(shared));
  } else {
    __trap();  // nobody launches it
  }
}

template <typename Value, typename Shape, bool Gated>
__global__ __launch_bounds__(up_threads<Value, Shape, Gated>, up_blocks_per_sm<Shape, Gated>) void
box_up_kernel(const __grid_constant__ boxes::BoxUp problem) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (device::has_bulk_copies) {
    boxes::run_up<Value, Shape, Gated>(problem, device::shared_address(shared));
  } else {
    __trap();
  }
}

namespace boxes {

inline Launch launch_of(const SecateurLowRank& a, cudaStream_t stream) {
  Launch how{};
  how.threads = threads;
  how.device = a.linear.device;
  how.stream = stream;
  return how;
}

template <typename Value>
int launch_down(const SecateurLowRank& a, cudaStream_t stream) {
  const int row_tiles = a.down_division.row_tiles;
  BoxDown problem{};
  problem.down = down_of(a);
  problem.cluster = cluster_of(a.down_division);
  const int64_t columns = a.linear.columns;
  if (const int error = map_matrix(a.linear.value_type, a.down, columns, a.groups * a.rank,
                                   columns, row_tiles * tile_rows, &problem.weight)) {
    return error;
  }
  if (const int error = map_x(a.linear, 8 * token_tiles(a.linear.tokens), &problem.x)) {
    return error;
  }
  Launch how = launch_of(a, stream);
  how.blocks = down_blocks(a);
  how.shared_bytes = static_cast<int>(down_shared_bytes(a));
  how.cluster = problem.cluster;
  how.dependent = a.linear.dependent != 0;
  int code = SECATEUR_BAD_LOW_RANK_TILES;
  with_box_shape(row_tiles, a.linear.tokens, [&](auto shape) {
    code = launch_kernel<box_down_kernel<Value, decltype(shape)>>(how, problem);
  });
  return code;
}

// Always a dependent: the kernel in front is the first of the two, and the weights are older.
template <typename Value>
int launch_up(const SecateurLowRank& a, cudaStream_t stream) {
  const int row_tiles = a.up_division.row_tiles;
  BoxUp problem{};
  problem.up = up_of(a);
  problem.cluster = cluster_of(a.up_division);
  const bool gated = a.linear.silu_and_mul != 0;
  if (const int error = map_matrix(a.linear.value_type, a.up, a.rank, a.linear.rows, a.rank,
                                   up_box_rows(row_tiles, gated), &problem.weight)) {
    return error;
  }
  Launch how = launch_of(a, stream);
  how.blocks = a.up_division.blocks;
  how.shared_bytes = static_cast<int>(up_shared_bytes(a));
  how.cluster = problem.cluster;
  how.dependent = true;
  int code = SECATEUR_BAD_LOW_RANK_TILES;
  with_box_shape(row_tiles, a.linear.tokens, [&](auto shape) {
    using S = decltype(shape);
    if (!gated) {
      code = launch_kernel<box_up_kernel<Value, S, false>>(how, problem);
    } else if constexpr (S::row_tiles % 2 == 0) {
      code = launch_kernel<box_up_kernel<Value, S, true>>(how, problem);
    }
  });
  return code;
}

}  // namespace boxes
}  // namespace secateur::low_rank
