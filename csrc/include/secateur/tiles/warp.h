// What a warp does: it owns 64 rows and some tokens of the tile, and waits for others only through
// the ring, which all fill together.
#pragma once

#include "secateur/device.h"
#include "secateur/device/recompute.h"
#include "secateur/multiply24.h"
#include "secateur/shared_sums.h"
#include "secateur/tiles/loader.h"
#include "secateur/tiles/problem.h"
#include "secateur/write_block.h"

namespace secateur::tiles {

// Sums of part of K: true where this warp is the last for its part of the tile and has them all.
template <typename Shape>
SECATEUR_DEVICE bool reduce(Sums<Shape>& sums, const Problem& problem, int tile) {
  const TileSchedule& schedule = problem.schedule;
  const int warp = device::thread_anew() / warp_lanes;
  const int first = schedule.first_contributor(tile);
  const int count = schedule.last_contributor(tile) - first + 1;
  const bool later = schedule.later(first, tile);
  float* workspace =
      problem.workspace + warp * warp_slot_floats(Shape::row_tiles, Shape::token_tiles);
  uint32_t* counter =
      problem.counters + static_cast<int64_t>(schedule.counter(tile)) * Shape::warps + warp;
  return add_shares<Shape::row_tiles, Shape::token_tiles, 16>(
      sums, device::block() - first, count, counter, [&](int i) {
        return workspace + schedule.slot(first + i, i == 0 && later) * Shape::slot_floats;
      });
}

// The part of y that a warp computes of a tile.
struct Part {
  int panel;  // of 64 rows
  int token;

  // Nothing was copied for panels beyond the weight, and nobody asks for tokens beyond x.
  SECATEUR_INLINE bool exists(const Output& output) const {
    return panel < fragment24::panels(output.rows) && token < output.tokens;
  }
};

template <typename Shape>
SECATEUR_DEVICE Part part_of(const Problem& problem, int tile, int warp) {
  const TilePlace place = problem.schedule.place(tile);
  return {place.row_block * Shape::panels + warp % Shape::row_warps,
          place.token_block * Shape::tokens + warp / Shape::row_warps * Shape::warp_tokens};
}

// `steps` steps from the ring. In the second half of each the stage before is filled anew: by then
// the other warps are done with it as well. At the end of the work it is filled with zeros, which
// nobody waits for: that costs less than asking.
template <typename Value, typename Shape>
SECATEUR_DEVICE void multiply_segment(Sums<Shape>& sums, Ring<Shape>& ring, Loader<Shape>& loader,
                                      int steps, int warp, bool exists) {
  constexpr int slots = Shape::token_tiles;
  const int lane = device::lane();
  const uint32_t my_weights = warp % Shape::row_warps * fragment24::unit_bytes;
  const uint32_t my_x = warp / Shape::row_warps * Shape::warp_tokens * x_tile::token_bytes;
#pragma unroll 1
  for (int left = steps; left > 0; --left) {
    const bool more = loader.next(warp, lane);
    const Ring<Shape> target = ring.to_fill();
    const auto fill = [&](int now) {
      if (now < slots) return;
      if (now == slots) device::barrier_wait(target.empty(), target.phase ^ 1);
#pragma unroll
      for (int i = now - slots; i < Loader<Shape>::copies; i += slots) {
        loader.copy(i, target.weights(), warp, lane);
      }
    };
    device::barrier_wait(ring.full(), ring.phase);
    if (exists) {
      multiply_step<Value, Shape::row_tiles, Shape::token_tiles>(
          sums, ring.weights() + my_weights, ring.x() + my_x, lane, fill);
    } else {
#pragma unroll
      for (int now = slots; now < 2 * slots; ++now) fill(now);
    }
    if (more) device::barrier_arrive_after_copies(target.full());
    device::sync_warp();
    if (lane == 0) device::barrier_arrive(ring.empty());
    ring.advance();
  }
}

// All stages but one. Weights are fetched while the kernel in front may still run; x is what it
// writes.
template <typename Shape>
SECATEUR_DEVICE void fill_ring(const Problem& problem, Loader<Shape>& loader, Ring<Shape> ring,
                               int warp, int lane) {
  using L = Loader<Shape>;
  L early = loader;
  Ring<Shape> target = ring;
#pragma unroll 1
  for (int left = problem.stages - 1; left > 0 && early.next(warp, lane); --left) {
#pragma unroll
    for (int i = 0; i < L::weight_copies; ++i) early.copy(i, target.weights(), warp, lane);
    target.advance();
  }
  device::wait_for_predecessor();
#pragma unroll 1
  for (int left = problem.stages - 1; left > 0 && loader.next(warp, lane); --left) {
#pragma unroll
    for (int i = L::weight_copies; i < L::copies; ++i) {
      loader.copy(i, ring.weights(), warp, lane);
    }
    device::barrier_arrive_after_copies(ring.full());
    ring.advance();
  }
}

template <typename Value, typename Shape>
SECATEUR_DEVICE void compute(const Problem& problem, Ring<Shape> ring) {
  TileWalk walk(problem.schedule, device::block());
  Loader<Shape> loader(problem, walk);
  fill_ring<Shape>(problem, loader, ring, device::thread() / warp_lanes, device::lane());
  TileSegment segment;
  Sums<Shape> sums;
#pragma unroll 1
  while (walk.next(segment)) {
    const bool whole = problem.schedule.whole(segment);
    const int warp = device::thread_anew() / warp_lanes;
    const bool here = part_of<Shape>(problem, segment.tile, warp).exists(problem.output);
    clear_sums(sums);
    multiply_segment<Value, Shape>(sums, ring, loader, segment.end - segment.first, warp, here);
    if (!here) continue;
    if (!whole && !reduce<Shape>(sums, problem, segment.tile)) continue;
    // Computed anew rather than kept in registers.
    const int tile = device::anew(segment.tile);
    const Part part = part_of<Shape>(problem, tile, device::thread_anew() / warp_lanes);
    write_block<Value, Shape::row_tiles, Shape::token_tiles>(
        problem.output, static_cast<int64_t>(part.panel) * Shape::row_tiles, part.token, sums);
  }
  // cp.async must have landed before the thread leaves.
  device::wait_for_copies();
}

}  // namespace secateur::tiles
