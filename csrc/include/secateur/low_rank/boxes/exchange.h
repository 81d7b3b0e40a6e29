// The sums of a cluster whose thread blocks share row blocks and split the columns: tile w of 16
// rows and eight tokens is handed over by the warps w, and finished by that of its owner.
#pragma once

#include "secateur/cluster_exchange.h"
#include "secateur/device/recompute.h"
#include "secateur/low_rank/boxes/problem.h"

namespace secateur::low_rank::boxes {

// Two inboxes in turns: when a warp hands over the sums of one row block, all ranks have read those
// of the last but one, since they have all handed over, warp by warp after that, what the warp has
// waited for of the last. Each step of this is one that a barrier orders: reads by the meeting of
// the warps of that rank, what they hand over then by the wait for it. Counted stores need no fence
// between proxies: they are none of the async proxy (PTX ISA, "Async Proxy").
template <typename Shape>
struct Exchange {
  static constexpr int tiles = Shape::row_tiles * Shape::token_tiles;

  uint32_t base;
  uint32_t barriers;  // one a turn
  int ranks;
  int count = 0;  // of row blocks

  // One thread, ahead of the fence of all barriers.
  SECATEUR_DEVICE void init() const {
#pragma unroll 1
    for (int index = 0; index < 2; ++index) turn(index, device::cluster_rank()).init();
  }

  // For all warps, with the sums of the thread block in those below `tiles`. Whether the warp has
  // the sums of the cluster, and is to finish its tile.
  SECATEUR_DEVICE bool add(float (&total)[accumulator::items], int warp, int lane) {
    const bool has_tile = warp < tiles;
    if (ranks == 1) return has_tile;
    // Asked for anew, so that nothing that follows from them is kept in registers.
    const int rank = device::cluster_rank();
    warp = device::anew(warp), lane = device::anew(lane);
    if (count == 0) {
      device::cluster_wait();  // all of it run, and their barriers stand
    } else if (rank < tiles) {
      turn(count - 1, rank).wait(phase(count - 1));
    }
    const ClusterExchange<1> now = turn(count, rank);
    if (has_tile) now.hand_over(total, warp, 0, lane);
    const bool mine = has_tile && now.inbox.owner(warp) == rank;
    if (mine) {
      now.wait(phase(count));
      float all[1][accumulator::items];
      now.take(all, warp, lane);
#pragma unroll
      for (int i = 0; i < accumulator::items; ++i) total[i] = all[0][i];
      // The first tile of a rank: its warp lets the barrier wait for the row block after the next.
      if (warp == rank && lane == 0) now.expect();
    }
    ++count;
    return mine;
  }

 private:
  SECATEUR_DEVICE ClusterExchange<1> turn(int index, int rank) const {
    const Inbox box = inbox(tiles, device::anew(ranks));
    return {box, base + index % 2 * box.bytes(), barriers + 8 * (index % 2), rank};
  }
  static SECATEUR_DEVICE uint32_t phase(int index) { return index / 2 % 2; }
};

}  // namespace secateur::low_rank::boxes
