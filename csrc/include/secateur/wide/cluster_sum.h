// A cluster that splits the steps of a tile among its thread blocks: each leaves its sums in its
// ring, which is idle at the end of a tile, and finishes a share of the tile.
#pragma once

#include "secateur/cluster_sums.h"
#include "secateur/device/recompute.h"
#include "secateur/wide/problem.h"
#include "secateur/wide/producer.h"
#include "secateur/wide/registers.h"
#include "secateur/wide/write.h"

namespace secateur::wide {

// For the warps that multiply, all of them, those without rows too: nobody fills the ring.
template <typename Value, typename Shape>
SECATEUR_DEVICE void sum_in_cluster(const Sums<Shape>& sums, const Problem& problem,
                                    const Member& member, int ring, int group) {
  using fragment24::tiles_per_unit;
  constexpr int tiles = Shape::panels * Shape::token_tiles;  // that each warp leaves
  constexpr int together = cluster_sums::tiles_each(tiles, max_cluster) == 1 ? 1 : 2;
  device::sync_block();  // no product reads the ring any more
  // Asked anew, so that nothing that follows from them takes registers beside the sums.
  const int lane = device::lane(), warp = device::thread_anew() / warp_lanes;
  const auto base = static_cast<uint32_t>(device::anew(ring));
#pragma unroll
  for (int p = 0; p < Shape::panels; ++p) {
    const int panel = warp / warpgroup_warps * Shape::panels + p;
    cluster_sums::leave(sums[p], base, panel * tiles_per_unit + warp % warpgroup_warps, lane);
  }
  cluster_sums::publish();
  const cluster_sums::Shared shared{
      static_cast<int64_t>(first_panel<Shape>(problem, member, group)) * tiles_per_unit,
      first_token<Shape>(problem, member, group),
      {member.first_of_tile(), member.cluster.team(), member.cluster.steps, member.step}};
  cluster_sums::finish_share<Value, tiles, Shape::token_tiles, Shape::warps, together>(
      problem.output, shared, base, warp);
  cluster_sums::retire();
}

}  // namespace secateur::wide
