// How the thread blocks of a cluster, which share a row block and have each summed their own columns,
// add up: tile w of 16 rows and eight tokens is finished by warp w of rank w % ranks, to which the
// warps w of all others hand their sums by counted stores. Nobody reads another's memory.
#pragma once

#include "secateur/device/cluster.h"
#include "secateur/low_rank/boxes/problem.h"
#include "secateur/low_rank/multiply.h"

namespace secateur::low_rank::boxes {

// Two row blocks in turns: when a warp hands over the sums of one, all ranks have read those of the
// last but one, since they have all handed over, warp by warp after that, what the warp has waited
// for of the last.
template <typename Shape>
struct Exchange {
  static constexpr int tiles = Shape::row_tiles * Shape::token_tiles;

  uint32_t base;
  uint32_t barriers;  // one a turn
  int ranks;
  int rank;
  int count = 0;  // of row blocks

  SECATEUR_DEVICE uint32_t barrier(int index) const { return barriers + 8 * (index % 2); }
  SECATEUR_DEVICE uint32_t phase(int index) const { return index / 2 % 2; }
  SECATEUR_DEVICE uint32_t place(int tile, int from) const {
    return base + ((count % 2 * inbox_tiles(tiles, ranks) + tile / ranks) * ranks + from) *
                      sums_tile_bytes;
  }
  // Bytes that this rank gets for a row block.
  SECATEUR_DEVICE int inbound() const {
    return (tiles + ranks - 1 - rank) / ranks * ranks * sums_tile_bytes;
  }

  // One thread, ahead of the fence of all barriers.
  SECATEUR_DEVICE void init() const {
#pragma unroll 1
    for (int turn = 0; turn < 2; ++turn) {
      device::barrier_init(barrier(turn), 1);
      device::barrier_arrive_expect(barrier(turn), inbound());
    }
  }

  SECATEUR_DEVICE void hand_over(const float (&total)[accumulator::items], int tile, int lane) {
    const int owner = tile % ranks;
    device::store_counted16(device::map_shared(place(tile, rank) + lane * 16, owner),
                            {{device::bits_of(total[0]), device::bits_of(total[1]),
                              device::bits_of(total[2]), device::bits_of(total[3])}},
                            device::map_shared(barrier(count), owner));
  }

  // The sums of all ranks, in their order.
  SECATEUR_DEVICE void take(float (&total)[accumulator::items], int tile, int lane) {
    device::barrier_wait(barrier(count), phase(count));
    const uint32_t parts = place(tile, 0) + lane * 16;
#pragma unroll
    for (int i = 0; i < accumulator::items; ++i) total[i] = 0.0f;
#pragma unroll 4
    for (int from = 0; from < ranks; ++from) {
      const Words4 part = device::load_shared16(parts + from * sums_tile_bytes);
#pragma unroll
      for (int i = 0; i < accumulator::items; ++i) total[i] += device::float_of(part.word[i]);
    }
    // The first tile of a rank: its warp lets the barrier wait for the row block after the next.
    if (tile == rank && lane == 0) device::barrier_arrive_expect(barrier(count), inbound());
  }

  // For all warps, with the sums of the thread block in those below `tiles`. Whether the warp has
  // the sums of the cluster, and is to finish its tile.
  SECATEUR_DEVICE bool add(float (&total)[accumulator::items], int warp, int lane) {
    const bool has_tile = warp < tiles;
    if (ranks == 1) return has_tile;
    if (count == 0) {
      device::cluster_wait();  // all of it run, and their barriers stand
    } else if (rank < tiles) {
      device::barrier_wait(barrier(count - 1), phase(count - 1));
    }
    if (has_tile) hand_over(total, warp, lane);
    const bool mine = has_tile && warp % ranks == rank;
    if (mine) take(total, warp, lane);
    ++count;
    return mine;
  }
};

}  // namespace secateur::low_rank::boxes
