// The thread blocks of a cluster, which share a row block and have each summed their own steps, add
// up and finish a share of the rows each.
#pragma once

#include "secateur/cluster_exchange.h"
#include "secateur/device/marks.h"
#include "secateur/skinny/problem.h"
#include "secateur/write_tile.h"

namespace secateur::skinny {

// `start`: of what the thread block has for it in shared memory.
template <typename Shape>
SECATEUR_DEVICE ClusterExchange<item_tiles(Shape::token_tiles)> exchange_of(const Problem& problem,
                                                                            uint32_t start) {
  return {inbox(problem.warps, Shape::row_tiles, Shape::token_tiles, problem.cluster),
          start + exchange_barrier_bytes, start, device::cluster_rank()};
}

// For the warps that multiply.
template <typename Value, typename Shape>
SECATEUR_DEVICE void sum_in_cluster(const Sums<Shape>& sums, const Problem& problem,
                                    uint32_t start, int row_block, int warp) {
  constexpr int tiles = item_tiles(Shape::token_tiles);
  constexpr int items_per_tile = Shape::token_tiles / tiles;
  const auto exchange = exchange_of<Shape>(problem, start);
  const int lane = device::lane();
  device::cluster_wait();  // all of it run, and their barriers stand
#pragma unroll
  for (int r = 0; r < Shape::row_tiles; ++r) {
#pragma unroll
    for (int n = 0; n < Shape::token_tiles; ++n) {
      const int item = (warp * Shape::row_tiles + r) * items_per_tile + n / tiles;
      exchange.hand_over(sums[r][n], item, n % tiles, lane);
    }
  }
  device::mark(device::Point::handed_over);
  exchange.wait(0);
  device::mark(device::Point::summed);
  const int ranks = problem.cluster;
#pragma unroll 1
  for (int item = exchange.rank + warp * ranks; item < exchange.inbox.tiles;
       item += problem.warps * ranks) {
    const int64_t tile = static_cast<int64_t>(row_block) * problem.warps * Shape::row_tiles +
                         item / items_per_tile;
    const int token = item % items_per_tile * tiles * accumulator::tile_tokens;
    float all[tiles][accumulator::items];
    exchange.take(all, item, lane);
    write_tile<Value>(problem.output, tile, token, all);
  }
}

}  // namespace secateur::skinny
