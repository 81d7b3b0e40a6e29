// How the thread blocks of a cluster, each of which has summed its own steps of the same tile, add
// up: everyone leaves its sums in its idle ring, and finishes a share of the tile by reading those
// of all, in order of rank, so that results repeat bit for bit.
#pragma once

#include "secateur/device/cluster.h"
#include "secateur/fragment24.h"
#include "secateur/warp_sums.h"
#include "secateur/write_tile.h"

namespace secateur::cluster_sums {

// The thread blocks of a cluster that have summed parts of the same tile, in the order in which
// they are added, and which of them asks.
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
  const uint32_t target = base + tile * TokenTiles * accumulator::tile_bytes + lane * 16;
#pragma unroll
  for (int n = 0; n < TokenTiles; ++n) {
    device::store_shared16(target + n * accumulator::tile_bytes, words_of(sums[n]));
  }
}

// Sums of `Tiles` token tiles over `Count` thread blocks, in their order, take the place of the
// thread block's own. All loads are issued before any is used.
template <int Tiles, int Count>
SECATEUR_DEVICE void add_ranks(uint32_t place, const Ranks& ranks) {
  Words4 parts[Count][Tiles];
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const uint32_t mapped = device::map_shared(place, ranks.rank(i));
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      parts[i][n] = device::load_mapped16(mapped + n * accumulator::tile_bytes);
    }
  }
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int j = 0; j < accumulator::items; ++j) {
      float sum = device::as_float(parts[0][n].word[j]);
#pragma unroll
      for (int i = 1; i < Count; ++i) sum += device::as_float(parts[i][n].word[j]);
      parts[0][n].word[j] = device::as_bits(sum);
    }
    device::store_shared16(place + n * accumulator::tile_bytes, parts[0][n]);
  }
}

// What is added up: sub-tiles from `first_tile` of the weight on, token tiles from `first_token`
// on.
struct Shared {
  int64_t first_tile;
  int first_token;
  Ranks ranks;
};

// How many of the token tiles that a warp has left it finishes.
SECATEUR_INLINE constexpr int tiles_each(int tiles, int ranks) {
  return tiles < ranks ? 1 : tiles / ranks;
}

// The calling warp's part of the thread block's share. Each of `Warps` has left Tiles token tiles,
// TokenTiles of them a sub-tile; so many that lie together are finished by one warp that it waits
// for the other thread blocks once. What has been added up goes to y by `Together` token tiles.
template <typename Value, int Tiles, int TokenTiles, int Warps, int Together>
SECATEUR_DEVICE void finish_share(const Output& output, const Shared& shared, uint32_t base,
                                  int warp) {
  const Ranks& ranks = shared.ranks;
  const int each = tiles_each(Tiles, ranks.count), share = Tiles * Warps / ranks.count;
  if (warp * each >= share) return;
  const int first = ranks.mine * share + warp * each;
  const int64_t tile = shared.first_tile + first / TokenTiles;
  int token = shared.first_token + first % TokenTiles * accumulator::tile_tokens;
  if (token >= output.tokens || tile * fragment24::tile_rows >= output.rows) return;
  uint32_t place = base + first * accumulator::tile_bytes + device::lane() * 16;
  if (ranks.count == 2) add_ranks<tiles_each(Tiles, 2), 2>(place, ranks);
  if (ranks.count == 4) add_ranks<tiles_each(Tiles, 4), 4>(place, ranks);
  if (ranks.count == 8) add_ranks<tiles_each(Tiles, 8), 8>(place, ranks);
#pragma unroll 1
  for (int i = 0; i < each; i += Together) {
    float sums[Together][accumulator::items];
#pragma unroll
    for (int n = 0; n < Together; ++n) {
      const Words4 words = device::load_shared16(place + n * accumulator::tile_bytes);
#pragma unroll
      for (int j = 0; j < accumulator::items; ++j) sums[n][j] = device::as_float(words.word[j]);
    }
    write_tile<Value>(output, tile, token, sums);
    place += Together * accumulator::tile_bytes;
    token += Together * accumulator::tile_tokens;
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
