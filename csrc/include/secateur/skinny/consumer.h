// The warps that multiply: each owns rows, keeps its sums in registers to the end, and never waits
// for another but through the ring.
#pragma once

#include "secateur/device.h"
#include "secateur/device/marks.h"
#include "secateur/shared_sums.h"
#include "secateur/skinny/cluster_sum.h"
#include "secateur/skinny/problem.h"
#include "secateur/write_tile.h"

namespace secateur::skinny {

// One stage: 64 columns. `weights` and `x` are shared addresses of the warp's first sub-tile and
// of the tile of x. All sums get fragment 0 before any gets fragment 1, so that neighbouring
// instructions do not wait for each other; the next operand is loaded before the current is used.
//
// Every address is one of three that depend on the lane, plus a constant: the compiler, left alone,
// keeps a register for each load.
template <typename Value, typename Shape>
SECATEUR_DEVICE void multiply_stage(Sums<Shape>& sums, uint32_t weights, uint32_t x, int lane) {
  using namespace fragment24;
  constexpr int row_tiles = Shape::row_tiles, token_tiles = Shape::token_tiles;
  const uint32_t my_values = weights + value_offset(0, lane);
  const uint32_t my_metadata = weights + metadata_offset(lane);
  const uint32_t operand = x + x_tile::operand_offset(lane);
  uint32_t metadata[row_tiles];
#pragma unroll
  for (int r = 0; r < row_tiles; ++r) {
    metadata[r] = device::load_shared4(my_metadata + r * tile_bytes);
  }
  Words4 tokens[2];
  tokens[0] = device::load_matrices(operand);
#pragma unroll
  for (int fragment = 0; fragment < 2; ++fragment) {
    Words4 values[row_tiles];
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
      values[r] = device::load_shared16(my_values + r * tile_bytes + fragment * fragment_bytes);
    }
#pragma unroll
    for (int n = 0; n < token_tiles; ++n) {
      const int now = fragment * token_tiles + n, next = now + 1;
      if (next < 2 * token_tiles) {
        const uint32_t flip = next / token_tiles * x_tile::second_fragment;
        tokens[next % 2] = device::load_matrices(
            (operand ^ flip) + next % token_tiles * x_tile::token_tile_bytes);
      }
#pragma unroll
      for (int r = 0; r < row_tiles; ++r) {
        if (fragment == 0) {
          device::multiply_sparse<Value, 0>(sums[r][n], values[r], tokens[now % 2], metadata[r]);
        } else {
          device::multiply_sparse<Value, 1>(sums[r][n], values[r], tokens[now % 2], metadata[r]);
        }
      }
    }
  }
}

// Sums of part of K: true where this warp is the last for its rows and has them all.
template <typename Shape>
SECATEUR_DEVICE bool reduce(Sums<Shape>& sums, const Problem& problem, int row_block, int warp) {
  const Schedule& schedule = problem.schedule;
  const int first = schedule.first_contributor(row_block);
  const int count = schedule.last_contributor(row_block) - first + 1;
  const int64_t size = slot_floats(problem.warps, Shape::row_tiles, Shape::token_tiles);
  float* workspace =
      problem.workspace + warp * warp_slot_floats(Shape::row_tiles, Shape::token_tiles);
  uint32_t* counter = problem.counters + row_block * problem.warps + warp;
  return add_shares<Shape::row_tiles, Shape::token_tiles, 8>(
      sums, device::block() - first, count, counter,
      [&](int i) { return workspace + schedule.slot(first + i, row_block) * size; });
}

template <typename Value, typename Shape, bool Bulk>
SECATEUR_DEVICE void consume(const Problem& problem, Ring ring, int warp, int lane) {
  const Schedule& schedule = problem.schedule;
  const int all_tiles = fragment24::panels(problem.output.rows) * fragment24::tiles_per_unit;
  const uint32_t my_weights = warp * Shape::row_tiles * fragment24::tile_bytes;
  const uint32_t x = problem.block_panels * fragment24::unit_bytes;
  int unit = schedule.first_unit(device::block());
  Sums<Shape> sums;
#pragma unroll 1
  while (unit < schedule.first_unit(device::block() + 1)) {
    const Segment segment = schedule.segment(unit, schedule.first_unit(device::block() + 1));
    // The last row block may have fewer panels: nothing was copied for the warps beyond.
    const int tile = first_tile(segment.row_block, problem.warps, warp, Shape::row_tiles);
    clear_sums(sums);
#pragma unroll 1
    for (int left = segment.end - segment.first; left > 0; --left) {
      device::barrier_wait(ring.full(ring.stage), ring.phase);
      device::mark_first(device::Point::first_full, left == segment.end - segment.first);
      device::mark(device::Point::last_full, left == 1);
      if (tile < all_tiles) {
        multiply_stage<Value, Shape>(sums, ring.weights() + my_weights, ring.weights() + x, lane);
      }
      if constexpr (Bulk) device::fence_before_copies();  // of what is read here, to be overwritten
      device::sync_warp();
      if (lane == 0) device::barrier_arrive(ring.empty(ring.stage));
      ring.advance();
    }
    unit += segment.end - segment.first;
    // For workspace, counters, residual and y. The producer has waited: this returns at once.
    device::wait_for_predecessor();
    if constexpr (Bulk) {
      if (problem.cluster > 1) {  // the only segment
        sum_in_cluster<Value, Shape>(sums, problem, ring.exchange(), segment.row_block, warp);
        return;
      }
    }
    if (tile >= all_tiles) continue;
    if (!schedule.whole(segment)) {
      device::mark(device::Point::handed_over);
      if (!reduce<Shape>(sums, problem, segment.row_block, warp)) continue;
      device::mark(device::Point::summed);
    }
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) {
      write_tile<Value>(problem.output, tile + r, 0, sums[r]);
      // One sub-tile after the other: their addresses together do not fit into registers.
      device::sync_warp();
    }
  }
}

}  // namespace secateur::skinny
