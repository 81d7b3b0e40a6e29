// The thread blocks of a cluster, which share a row block and have each summed their own steps, add
// up: everyone leaves its sums in its idle ring, and finishes a share of them all.
#pragma once

#include "secateur/cluster_sums.h"
#include "secateur/skinny/problem.h"
#include "secateur/skinny/sums.h"

namespace secateur::skinny {

// For the warps that multiply. `base`: of the ring.
template <typename Value, typename Shape>
SECATEUR_DEVICE void sum_in_cluster(const Sums<Shape>& sums, const Problem& problem, uint32_t base,
                                    int row_block, int warp) {
  constexpr int item_tiles = Shape::token_tiles < 2 ? 1 : 2;
  const int lane = device::lane(), tiles = problem.warps * Shape::row_tiles;
  device::sync_block();  // no warp reads the ring any more
#pragma unroll
  for (int r = 0; r < Shape::row_tiles; ++r) {
    cluster_sums::leave(sums[r], base, warp * Shape::row_tiles + r, lane);
  }
  cluster_sums::publish();
  const cluster_sums::Ranks ranks{0, 1, problem.cluster, device::cluster_rank()};
  const cluster_sums::Shared shared{row_block * tiles, 0, tiles, ranks};
  cluster_sums::finish_share<Value, Shape::token_tiles, item_tiles, max_cluster>(
      problem.output, shared, base, warp, problem.warps);
  cluster_sums::retire();
}

}  // namespace secateur::skinny
