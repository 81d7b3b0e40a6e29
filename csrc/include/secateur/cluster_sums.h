// How the thread blocks of a cluster, each of which has summed its own steps of the same tile, add
// up: everyone leaves its sums in its idle ring, and finishes a share of the tile by reading those
// of all, in order of rank, so that results repeat bit for bit.
#pragma once

#include "secateur/accumulator.h"
#include "secateur/device/cluster.h"
#include "secateur/fragment24.h"
#include "secateur/write_tile.h"

namespace secateur::cluster_sums {

constexpr int max_ranks = 8;
// The accumulators of a warp for 16 rows and eight tokens.
constexpr int tile_bytes = warp_lanes * accumulator::items * 4;

SECATEUR_INLINE constexpr int share_begin(int items, int ranks, int rank) {
  return items * rank / ranks;
}

// The thread blocks of a cluster that have summed parts of the same tile, in the order in which they
// are added, and which of them asks.
struct Ranks {
  int first;
  int apart;
  int count;
  int mine;

  SECATEUR_INLINE constexpr int rank(int i) const { return first + i * apart; }
};

// Sub-tile `tile` of the thread block's.
template <int TokenTiles>
SECATEUR_DEVICE void leave(const float (&sums)[TokenTiles][accumulator::items], uint32_t base,
                           int tile, int lane) {
  const uint32_t target = base + tile * TokenTiles * tile_bytes + lane * 16;
#pragma unroll
  for (int n = 0; n < TokenTiles; ++n) {
    Words4 words;
#pragma unroll
    for (int i = 0; i < accumulator::items; ++i) words.word[i] = device::as_bits(sums[n][i]);
    device::store_shared16(target + n * tile_bytes, words);
  }
}

// An item's sums over all thread blocks, in their order: loads of `Together` of them are issued
// before any is used.
template <int Tiles, int Together>
SECATEUR_DEVICE void add_ranks(float (&sums)[Tiles][accumulator::items], uint32_t place,
                               const Ranks& ranks) {
#pragma unroll
  for (int first = 0; first < max_ranks; first += Together) {
    Words4 parts[Together][Tiles];
#pragma unroll
    for (int i = 0; i < Together; ++i) {
      if (first + i >= ranks.count) continue;
      const uint32_t mapped = device::map_shared(place, ranks.rank(first + i));
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        parts[i][n] = device::load_mapped16(mapped + n * tile_bytes);
      }
    }
#pragma unroll
    for (int i = 0; i < Together; ++i) {
      if (first + i >= ranks.count) continue;
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
#pragma unroll
        for (int j = 0; j < accumulator::items; ++j) {
          const float part = device::as_float(parts[i][n].word[j]);
          sums[n][j] = first + i == 0 ? part : sums[n][j] + part;
        }
      }
    }
  }
}

// What is added up: `tiles` sub-tiles from `first_tile` of the weight on, TokenTiles token tiles
// from `first_token` on.
struct Shared {
  int64_t first_tile;
  int first_token;
  int tiles;
  Ranks ranks;
};

// The calling warp's part, one of `warps`, of the thread block's share. Shares are counted in items
// of 16 rows and ItemTiles token tiles: small ones, so that there are enough of them for all warps.
template <typename Value, int TokenTiles, int ItemTiles, int Together>
SECATEUR_DEVICE void finish_share(const Output& output, const Shared& shared, uint32_t base,
                                  int warp, int warps) {
  constexpr int items_per_tile = TokenTiles / ItemTiles;
  const Ranks& ranks = shared.ranks;
  const int items = shared.tiles * items_per_tile;
  const int end = share_begin(items, ranks.count, ranks.mine + 1);
#pragma unroll 1
  for (int item = share_begin(items, ranks.count, ranks.mine) + warp; item < end; item += warps) {
    const int64_t tile = shared.first_tile + item / items_per_tile;
    const int token =
        shared.first_token + item % items_per_tile * ItemTiles * accumulator::tile_tokens;
    if (token >= output.tokens || tile * fragment24::tile_rows >= output.rows) continue;
    const uint32_t place = base + item * ItemTiles * tile_bytes + device::lane() * 16;
    float mine[ItemTiles][accumulator::items];
    add_ranks<ItemTiles, Together>(mine, place, ranks);
    write_tile<Value>(output, tile, token, mine);
  }
}

// Behind the last access of the thread block's warps to the ring: all warps leave their sums, then
// `publish`, and finish their shares between that and `retire`.
SECATEUR_DEVICE void publish() {
  device::cluster_arrive_shared();
  device::cluster_wait();
}
// Others may still read this thread block's sums. Nothing is published, but a relaxed arrival could
// overtake this thread's own reads of theirs, if their values are not used. Of the fence the manual
// promises that for the own thread block's memory only; what it is made of waits for all accesses.
SECATEUR_DEVICE void retire() {
  device::cluster_arrive_shared();
  device::cluster_wait();
}

// For warps that have no sums: the barriers that all threads have to meet at.
SECATEUR_DEVICE void attend() {
  device::sync_block();
  device::cluster_arrive_relaxed();
  device::cluster_wait();
  device::cluster_arrive_relaxed();
  device::cluster_wait();
}

}  // namespace secateur::cluster_sums
