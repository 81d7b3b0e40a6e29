// How the thread blocks of a cluster, which share a row block and have each summed their own steps,
// add up: everyone leaves its sums in its idle ring, and finishes a share of them all.
#pragma once

#include "secateur/device/cluster.h"
#include "secateur/skinny/problem.h"
#include "secateur/skinny/sums.h"
#include "secateur/write_tile.h"

namespace secateur::skinny {

// Shares are counted in items of 16 rows and up to 16 tokens: enough of them for all warps.
template <typename Shape>
constexpr int item_tiles = Shape::token_tiles < 2 ? 1 : 2;

SECATEUR_INLINE constexpr int share_begin(int items, int cluster, int rank) {
  return items * rank / cluster;
}

// An item's sums over all thread blocks, in their order. All loads are issued before any is used.
template <int Tiles>
SECATEUR_DEVICE void add_ranks(float (&sums)[Tiles][accumulator::items], uint32_t place,
                               int cluster) {
  Words4 parts[max_cluster][Tiles];
#pragma unroll
  for (int rank = 0; rank < max_cluster; ++rank) {
    if (rank >= cluster) continue;
    const uint32_t mapped = device::map_shared(place, rank);
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      parts[rank][n] = device::load_mapped16(mapped + n * tile_sum_bytes);
    }
  }
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int i = 0; i < accumulator::items; ++i) {
      sums[n][i] = device::as_float(parts[0][n].word[i]);
    }
  }
#pragma unroll
  for (int rank = 1; rank < max_cluster; ++rank) {
    if (rank >= cluster) continue;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int i = 0; i < accumulator::items; ++i) {
        sums[n][i] += device::as_float(parts[rank][n].word[i]);
      }
    }
  }
}

template <typename Shape>
SECATEUR_DEVICE void leave_sums(const Sums<Shape>& sums, uint32_t base, int warp, int lane) {
  constexpr int row_tiles = Shape::row_tiles, token_tiles = Shape::token_tiles;
#pragma unroll
  for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
    for (int n = 0; n < token_tiles; ++n) {
      const int offset = slot_offset(warp, r, n, lane, row_tiles, token_tiles) * 4;
      Words4 words;
#pragma unroll
      for (int i = 0; i < accumulator::items; ++i) words.word[i] = device::as_bits(sums[r][n][i]);
      device::store_shared16(base + offset, words);
    }
  }
}

// For the warps that multiply. `base`: of the ring.
template <typename Value, typename Shape>
SECATEUR_DEVICE void sum_in_cluster(const Sums<Shape>& sums, const Problem& problem, uint32_t base,
                                    int row_block, int warp) {
  constexpr int tiles = item_tiles<Shape>, items_per_tile = Shape::token_tiles / tiles;
  const int lane = device::lane();
  device::sync_block();  // no warp reads the ring any more
  leave_sums<Shape>(sums, base, warp, lane);
  device::cluster_arrive_shared();
  device::cluster_wait();
  const int block_tiles = problem.warps * Shape::row_tiles;
  const int items = block_tiles * items_per_tile, rank = device::cluster_rank();
  const int end = share_begin(items, problem.cluster, rank + 1);
#pragma unroll 1
  for (int item = share_begin(items, problem.cluster, rank) + warp; item < end;
       item += problem.warps) {
    float mine[tiles][accumulator::items];
    const uint32_t place = base + item * tiles * tile_sum_bytes + lane * 16;
    add_ranks<tiles>(mine, place, problem.cluster);
    const int tile = row_block * block_tiles + item / items_per_tile;
    const int first_token = item % items_per_tile * tiles * accumulator::tile_tokens;
    write_tile<Value>(problem.output, tile, first_token, mine);
  }
  // Others may still read this thread block's sums; nothing is published.
  device::cluster_arrive_relaxed();
  device::cluster_wait();
}

// For the warp that copies: the barriers that all threads have to meet at.
SECATEUR_DEVICE void attend_cluster_sum() {
  device::sync_block();
  device::cluster_arrive_relaxed();
  device::cluster_wait();
  device::cluster_arrive_relaxed();
  device::cluster_wait();
}

}  // namespace secateur::skinny
