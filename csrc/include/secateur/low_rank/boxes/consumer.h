// What the warps that multiply have in common: operands out of swizzled boxes, meeting each other,
// and the sum of all their sums.
#pragma once

#include "secateur/low_rank/boxes/exchange.h"
#include "secateur/low_rank/boxes/problem.h"
#include "secateur/low_rank/multiply.h"

namespace secateur::low_rank::boxes {

// Pieces of 16 bytes lie at piece ^ (row % 8). What a lane passes to ldmatrix.x4 for rows `row` and
// its piece `piece`.
SECATEUR_INLINE constexpr int box_offset(int row, int piece) {
  return row * box_row_bytes + ((piece ^ (row % 8)) * piece_bytes);
}
constexpr int half_pieces = 4;  // 32 columns

// The warp's 32 columns of a row tile: operands of two instructions.
SECATEUR_DEVICE Weights load_box_weights(uint32_t tile, int half, int lane) {
  const uint32_t first = tile + box_offset(lane % 16, half * half_pieces + lane / 16);
  return {{device::load_matrices(first), device::load_matrices(first ^ (2 * piece_bytes))}};
}

// A barrier of the warps that multiply, which publishes what they wrote to shared memory.
struct Meeting {
  uint32_t barrier;
  uint32_t phase = 0;

  SECATEUR_DEVICE void meet(int lane) {
    device::sync_warp();
    if (lane == 0) device::barrier_arrive(barrier);
    device::barrier_wait(barrier, phase);
    phase ^= 1;
  }
};

// Every warp leaves its sums; warp w then has those of all, added in order, of tile w: row tile w /
// token_tiles, token tile w % token_tiles.
template <typename Shape>
SECATEUR_DEVICE void add_warps(const Sums<Shape>& sums, float (&total)[accumulator::items],
                               uint32_t place, Meeting& meeting, int warp, int lane) {
  constexpr int tiles = Shape::row_tiles * Shape::token_tiles;
  constexpr int tile = accumulator::tile_bytes;
  static_assert(tiles <= warps, "a tile a warp");
  const uint32_t mine = place + lane * 16;
#pragma unroll
  for (int i = 0; i < tiles; ++i) {
    device::store_shared16(mine + (warp * tiles + i) * tile,
                           words_of(sums[i / Shape::token_tiles][i % Shape::token_tiles]));
  }
  meeting.meet(lane);
  if (warp >= tiles) return;
  Words4 parts[warps];
#pragma unroll
  for (int other = 0; other < warps; ++other) {
    parts[other] = device::load_shared16(mine + (other * tiles + warp) * tile);
  }
#pragma unroll
  for (int i = 0; i < accumulator::items; ++i) total[i] = device::as_float(parts[0].word[i]);
#pragma unroll
  for (int other = 1; other < warps; ++other) {
#pragma unroll
    for (int i = 0; i < accumulator::items; ++i) {
      total[i] += device::as_float(parts[other].word[i]);
    }
  }
}

// The stages of one row block: `multiply(place, stage)` where the warp has a box of it.
template <typename Multiply>
SECATEUR_DEVICE void for_each_stage(Ring& ring, const Range& range, int warp, int lane,
                                    const Multiply& multiply) {
  const int stages = range.stages();
#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    device::barrier_wait(ring.full(), ring.phase);
    if (warp / 2 < range.boxes(stage)) multiply(ring.place(), stage);
    device::fence_before_copies();  // of what is read here, to be overwritten
    device::sync_warp();
    if (lane == 0) device::barrier_arrive(ring.empty());
    ring.advance();
  }
}

// Of one thread: all barriers.
template <typename Shape>
SECATEUR_DEVICE void init_barriers(const Places& places, int stages, int full_arrivals,
                                   const Exchange<Shape>& exchange) {
#pragma unroll 1
  for (int i = 0; i < stages; ++i) {
    device::barrier_init(places.barriers + 8 * i, full_arrivals);
    device::barrier_init(places.barriers + 8 * (stages + i), warps);
  }
  device::barrier_init(places.meeting, warps);
  if (exchange.ranks > 1) exchange.init();
  device::barrier_init_fence();
}

}  // namespace secateur::low_rank::boxes
