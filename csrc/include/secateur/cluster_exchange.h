// How the thread blocks of a cluster, which have each summed their own columns of the same tiles,
// add up: everyone hands each tile to the rank that finishes it, by counted stores, and that one
// adds what it got in order of rank, so that results repeat bit for bit. Nobody reads another's
// memory: each may leave when it is done.
#pragma once

#include "secateur/device/cluster.h"
#include "secateur/inbox.h"
#include "secateur/warp_sums.h"

namespace secateur {

// A thread block's side of it. Tiles are of 16 rows and TokenTiles token tiles.
template <int TokenTiles>
struct ClusterExchange {
  Inbox inbox;
  uint32_t base;  // of the inbox
  uint32_t barrier;
  int rank;

  // One thread, ahead of the fence of all barriers, and before any rank may hand over.
  SECATEUR_DEVICE void init() const {
    device::barrier_init(barrier, 1);
    expect();
  }
  // Lets the barrier wait for all that the rank gets.
  SECATEUR_DEVICE void expect() const {
    device::barrier_arrive_expect(barrier, inbox.inbound(rank));
  }
  SECATEUR_DEVICE void wait(uint32_t phase) const { device::barrier_wait_cluster(barrier, phase); }

  // Token tile n of a tile, by the warp that has its sums.
  SECATEUR_DEVICE void hand_over(const float (&sums)[accumulator::items], int tile, int n,
                                 int lane) const {
    const int owner = inbox.owner(tile);
    const uint32_t place = base + inbox.place(tile, rank) + lane * 16;
    device::store_counted16(device::map_shared(place, owner) + n * accumulator::tile_bytes,
                            words_of(sums), device::map_shared(barrier, owner));
  }

  // The sum of all ranks' parts of a tile of the own rank, behind `wait`. A loop: laid out for the
  // largest cluster, what follows from the number of ranks would be kept in registers.
  SECATEUR_DEVICE void take(float (&sums)[TokenTiles][accumulator::items], int tile,
                            int lane) const {
    uint32_t part = base + inbox.place(tile, 0) + lane * 16;
#pragma unroll
    for (int n = 0; n < TokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < accumulator::items; ++i) sums[n][i] = 0.0f;
    }
#pragma unroll 4
    for (int from = 0; from < inbox.ranks; ++from) {
#pragma unroll
      for (int n = 0; n < TokenTiles; ++n) {
        const Words4 words = device::load_shared16(part + n * accumulator::tile_bytes);
#pragma unroll
        for (int i = 0; i < accumulator::items; ++i) {
          sums[n][i] += device::as_float(words.word[i]);
        }
      }
      part += inbox.tile_bytes;
    }
  }
};

}  // namespace secateur
