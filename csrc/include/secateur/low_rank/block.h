// What both kernels do: a thread block takes row blocks one after the other, its warps take chunks
// of columns in turns, each through a ring of its own, and one warp adds their sums in order.
#pragma once

#include "secateur/low_rank/multiply.h"

namespace secateur::low_rank {

// The stages of a warp in their order: (row block, chunk). Warps w, w + warps, ... take the chunks
// from `first_chunk` on.
struct Cursor {
  int block;
  int chunk;
  int end_block;
  int first_chunk;  // of this warp
  int end_chunk;

  SECATEUR_INLINE bool exists() const { return block < end_block && first_chunk < end_chunk; }
  SECATEUR_INLINE void advance(int warps) {
    chunk += warps;
    if (chunk >= end_chunk) {
      chunk = first_chunk;
      ++block;
    }
  }
};

// Where things lie in shared memory. `hidden` bytes between the rings and the sums are the task's.
struct Places {
  uint32_t hidden;
  uint32_t sums;
  uint32_t barriers;

  SECATEUR_INLINE constexpr Places(uint32_t shared, const Division& d, int64_t hidden_bytes,
                                   int warp_sums)
      : hidden(shared + rings_bytes(d)),
        sums(hidden + static_cast<uint32_t>(hidden_bytes)),
        barriers(sums + 2 * d.warps * warp_sums) {}
};

// Every warp leaves its sums; one of them adds them up in the order of warps and returns true.
template <typename Shape>
SECATEUR_DEVICE bool combine(Sums<Shape>& sums, uint32_t place, int warps, int warp, bool mine) {
  constexpr int size = sums_bytes(Shape::row_tiles, Shape::token_tiles);
  constexpr int tile = accumulator::tile_bytes;
  const uint32_t first = place + device::lane() * 16;
#pragma unroll
  for (int r = 0; r < Shape::row_tiles; ++r) {
#pragma unroll
    for (int n = 0; n < Shape::token_tiles; ++n) {
      device::store_shared16(first + warp * size + (r * Shape::token_tiles + n) * tile,
                             words_of(sums[r][n]));
    }
  }
  device::sync_block();
  if (!mine) return false;
  clear_sums(sums);
#pragma unroll 1
  for (int other = 0; other < warps; ++other) {
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) {
#pragma unroll
      for (int n = 0; n < Shape::token_tiles; ++n) {
        const Words4 v = device::load_shared16(first + other * size +
                                               (r * Shape::token_tiles + n) * tile);
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[r][n][i] += device::as_float(v.word[i]);
      }
    }
  }
  return true;
}

// A task says what a stage is: `fetch_weights` (before the kernel in front has ended),
// `fetch_operand` (after), `announce`, `begin`, `multiply`, `finish`.
template <typename Shape, typename Task>
SECATEUR_DEVICE void run_block(Task& task, const Division& d, const Places& places, uint32_t shared,
                               const Cursor& first, int warp, int lane) {
  constexpr int size = sums_bytes(Shape::row_tiles, Shape::token_tiles);
  Ring ring{{shared + warp * d.stages * d.stage_bytes, d.stages},
            places.barriers + 8 * warp * d.stages,
            d.stage_bytes};
  if (lane == 0) {
#pragma unroll 1
    for (int i = 0; i < d.stages; ++i) device::barrier_init(ring.barriers + 8 * i, warp_lanes);
  }
  device::sync_warp();
  device::let_successor_start();
  Cursor ahead = first;
#pragma unroll 1
  for (int i = 0; i < d.stages && ahead.exists(); ++i, ahead.advance(d.warps)) {
    task.fetch_weights(ring.base + i * d.stage_bytes, ahead.block, ahead.chunk, lane);
  }
  device::wait_for_predecessor();
  ahead = first;
#pragma unroll 1
  for (int i = 0; i < d.stages && ahead.exists(); ++i, ahead.advance(d.warps)) {
    task.fetch_operand(ring.base + i * d.stage_bytes, ahead.chunk, lane);
    task.announce_stage(ring.barriers + 8 * i, ahead.chunk);
  }
#pragma unroll 1
  for (int block = first.block; block < first.end_block; ++block) {
    Sums<Shape> sums;
    clear_sums(sums);
    task.begin(block, lane);
#pragma unroll 1
    for (int chunk = first.first_chunk; chunk < first.end_chunk; chunk += d.warps) {
      device::barrier_wait(ring.full(), ring.phase);
      task.template multiply<Shape>(sums, ring.place(), chunk, lane);
      device::sync_warp();  // all lanes have read the stage
      if (ahead.exists()) {
        task.fetch_weights(ring.place(), ahead.block, ahead.chunk, lane);
        task.fetch_operand(ring.place(), ahead.chunk, lane);
        task.announce_stage(ring.full(), ahead.chunk);
        ahead.advance(d.warps);
      }
      ring.advance();
    }
    // Two places in turns: the warp that adds may still read the other.
    const int turn = block - first.block;
    const uint32_t place = places.sums + turn % 2 * d.warps * size;
    if (combine<Shape>(sums, place, d.warps, warp, turn % d.warps == warp)) {
      task.finish(block, sums);
    }
  }
}

}  // namespace secateur::low_rank
