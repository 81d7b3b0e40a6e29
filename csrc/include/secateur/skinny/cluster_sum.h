// The thread blocks of a cluster, which share a row block and have each summed their own steps, add
// up: everyone hands each share of its sums to the one that finishes it, and then finishes its own.
// Nobody reads another's memory, so that each may leave when it is done.
#pragma once

#include "secateur/cluster_sums.h"
#include "secateur/device/marks.h"
#include "secateur/skinny/problem.h"
#include "secateur/skinny/sums.h"

namespace secateur::skinny {

// How a cluster's sums are shared out.
template <typename Shape>
struct Exchange {
  static constexpr int item_tiles = skinny::item_tiles(Shape::token_tiles);
  static constexpr int items_per_tile = Shape::token_tiles / item_tiles;
  static constexpr int bytes = item_bytes(Shape::token_tiles);

  int items;
  int ranks;
  int largest;  // share
  uint32_t barrier;

  SECATEUR_DEVICE Exchange(const Problem& problem, uint32_t barrier)
      : items(skinny::items(problem.warps, Shape::row_tiles, Shape::token_tiles)),
        ranks(problem.cluster),
        largest((items + ranks - 1) / ranks),
        barrier(barrier) {}

  SECATEUR_DEVICE int begin(int rank) const {
    return cluster_sums::share_begin(items, ranks, rank);
  }
  SECATEUR_DEVICE int owner(int item) const { return ((item + 1) * ranks - 1) / items; }
  // Where the owner of a share has the item of it that comes from rank `from`.
  SECATEUR_DEVICE uint32_t place(int from, int item_of_share) const {
    return barrier + exchange_barrier_bytes + (from * largest + item_of_share) * bytes;
  }
};

// Before any thread of the cluster may hand over: one thread, ahead of the barriers' fence.
template <typename Shape>
SECATEUR_DEVICE void expect_sums(const Problem& problem, uint32_t barrier) {
  const Exchange<Shape> exchange(problem, barrier);
  const int rank = device::cluster_rank();
  const int mine = exchange.begin(rank + 1) - exchange.begin(rank);
  device::barrier_init(barrier, 1);
  device::barrier_arrive_expect(barrier, mine * exchange.ranks * exchange.bytes);
}

template <typename Shape>
SECATEUR_DEVICE void hand_over(const Sums<Shape>& sums, const Exchange<Shape>& exchange, int warp) {
  const int rank = device::cluster_rank(), lane = device::lane();
#pragma unroll
  for (int r = 0; r < Shape::row_tiles; ++r) {
#pragma unroll
    for (int g = 0; g < exchange.items_per_tile; ++g) {
      const int item = (warp * Shape::row_tiles + r) * exchange.items_per_tile + g;
      const int owner = exchange.owner(item);
      const uint32_t place = exchange.place(rank, item - exchange.begin(owner)) + lane * 16;
      const uint32_t target = device::map_shared(place, owner);
      const uint32_t barrier = device::map_shared(exchange.barrier, owner);
#pragma unroll
      for (int n = 0; n < exchange.item_tiles; ++n) {
        const float(&part)[accumulator::items] = sums[r][g * exchange.item_tiles + n];
        Words4 words;
#pragma unroll
        for (int i = 0; i < accumulator::items; ++i) words.word[i] = device::as_bits(part[i]);
        device::store_counted16(target + n * cluster_sums::tile_bytes, words, barrier);
      }
    }
  }
}

// The sum of all ranks' parts of an item, in their order, four loads of each at a time.
template <int Tiles>
SECATEUR_DEVICE void add_parts(float (&sums)[Tiles][accumulator::items], uint32_t place, int apart,
                               int ranks) {
  constexpr int together = 4;
#pragma unroll
  for (int first = 0; first < max_cluster; first += together) {
    Words4 parts[together][Tiles];
#pragma unroll
    for (int i = 0; i < together; ++i) {
      if (first + i >= ranks) continue;
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        const uint32_t from = place + (first + i) * apart + n * cluster_sums::tile_bytes;
        parts[i][n] = device::load_shared16(from);
      }
    }
#pragma unroll
    for (int i = 0; i < together; ++i) {
      if (first + i >= ranks) continue;
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

// For the warps that multiply. `barrier`: where the exchange begins.
template <typename Value, typename Shape>
SECATEUR_DEVICE void sum_in_cluster(const Sums<Shape>& sums, const Problem& problem,
                                    uint32_t barrier, int row_block, int warp) {
  const Exchange<Shape> exchange(problem, barrier);
  const int rank = device::cluster_rank();
  device::cluster_wait();  // all of it run, and their barriers stand
  hand_over<Shape>(sums, exchange, warp);
  device::mark(device::Point::handed_over);
  device::barrier_wait(barrier, 0);
  device::mark(device::Point::summed);
  const int first = exchange.begin(rank), end = exchange.begin(rank + 1);
#pragma unroll 1
  for (int item = first + warp; item < end; item += problem.warps) {
    const int64_t tile = static_cast<int64_t>(row_block) * problem.warps * Shape::row_tiles +
                         item / exchange.items_per_tile;
    const int token = item % exchange.items_per_tile * exchange.item_tiles;
    float all[Exchange<Shape>::item_tiles][accumulator::items];
    add_parts(all, exchange.place(0, item - first) + device::lane() * 16,
              exchange.largest * exchange.bytes, exchange.ranks);
    write_tile<Value>(problem.output, tile, token * accumulator::tile_tokens, all);
  }
}

}  // namespace secateur::skinny
