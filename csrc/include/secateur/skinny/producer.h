// The warp that fills the ring: weights by bulk copies or cp.async, x by cp.async.
#pragma once

#include "secateur/device.h"
#include "secateur/device/marks.h"
#include "secateur/skinny/problem.h"

namespace secateur::skinny {

// Arrivals that fill a stage: every lane's, and one that announces the bytes of bulk copies.
SECATEUR_INLINE constexpr int full_arrivals(bool bulk) { return warp_lanes + (bulk ? 1 : 0); }

// Where the producer stands in the thread block's range of units.
struct Walk {
  int row_block;
  int step;  // of 64 columns

  static SECATEUR_INLINE Walk from(const Schedule& schedule, int unit) {
    const int row_block = unit / schedule.steps;
    return {row_block, unit - row_block * schedule.steps};
  }
  SECATEUR_INLINE void advance(const Schedule& schedule) {
    if (++step == schedule.steps) {
      step = 0;
      ++row_block;
    }
  }
};

// The weights of a stage: one unit of each row panel, for the same 64 columns. The last row block
// may have fewer panels.
struct Weights {
  int panels;
  int64_t panel_stride;
  const uint8_t* source;

  SECATEUR_DEVICE Weights(const Problem& problem, const Walk& walk) {
    const int panel = walk.row_block * problem.block_panels;
    const int left = fragment24::panels(problem.output.rows) - panel;
    panels = left < problem.block_panels ? left : problem.block_panels;
    panel_stride = fragment24::unit_offset(1, 0, problem.schedule.steps);
    source = problem.weight + fragment24::unit_offset(panel, walk.step, problem.schedule.steps);
  }
};

template <bool Bulk>
SECATEUR_DEVICE void fetch_weights(uint32_t target, uint32_t full, const Problem& problem,
                                   const Walk& walk, uint64_t policy, int lane) {
  using fragment24::unit_bytes;
  const Weights weights(problem, walk);
  if constexpr (Bulk) {
    if (lane == 0) device::barrier_arrive_expect(full, weights.panels * unit_bytes);
    device::sync_warp();
    if (lane < weights.panels) {
      device::copy_bulk(target + lane * unit_bytes, weights.source + lane * weights.panel_stride,
                        unit_bytes, full, policy);
    }
  } else {
    for (int i = 0; i < weights.panels; ++i) {
#pragma unroll
      for (int offset = 0; offset < unit_bytes; offset += 16 * warp_lanes) {
        const int at = offset + 16 * lane;
        device::copy16(target + i * unit_bytes + at,
                       weights.source + i * weights.panel_stride + at, 16);
      }
    }
  }
}

// Weights that the ring has no room for yet, into the L2 cache: while the kernel in front ends and x
// arrives, memory would have nothing to do once the ring is full.
class Ahead {
 public:
  // Behind the first `early` of `units`, of which `walk` is the next.
  SECATEUR_DEVICE Ahead(const Walk& walk, int early, int units)
      : walk_(walk), asked_(early), units_(units) {}

  // All that come before step `end` and have not been asked for.
  SECATEUR_DEVICE void ask(const Problem& problem, int end, int lane) {
    if (problem.ahead == 0) return;
#pragma unroll 1
    for (; asked_ < end && asked_ < units_; ++asked_, walk_.advance(problem.schedule)) {
      const Weights weights(problem, walk_);
      if (lane < weights.panels) {
        device::prefetch_bulk(weights.source + lane * weights.panel_stride,
                              fragment24::unit_bytes);
      }
    }
  }

 private:
  Walk walk_;
  int asked_;
  int units_;
};

// Eight columns of x value by value, where rows are not aligned.
SECATEUR_DEVICE Words4 read_eight(const uint16_t* source, int valid_bytes) {
  uint32_t value[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    value[i] = 2 * i < valid_bytes ? device::load<uint16_t>(source + i) : 0;
  }
  Words4 words;
#pragma unroll
  for (int i = 0; i < 4; ++i) words.word[i] = value[2 * i] | (value[2 * i + 1] << 16);
  return words;
}

// Columns [64 * step, 64 * step + 64) of all tokens: zeros beyond the columns, which would be
// multiplied with the padding of the weight, and nothing for tokens that do not exist, since what
// comes of them is not stored. A lane moves one chunk of every fourth token: `copy(place, source,
// valid bytes)`.
template <int TokenTiles, typename Copy>
SECATEUR_DEVICE void for_each_chunk(uint32_t target, const Problem& problem, int step, int lane,
                                    const Copy& copy) {
  constexpr int apart = warp_lanes / x_tile::chunks;
  const int first = lane / x_tile::chunks, chunk = lane % x_tile::chunks;
  const int column = step * x_tile::columns + chunk * x_tile::chunk_columns;
  const int valid = x_tile::valid_bytes(column, problem.columns);
  const uint16_t* source = static_cast<const uint16_t*>(problem.x);
  if (valid > 0) source += first * problem.x_stride + column;
#pragma unroll
  for (int i = 0; i < TokenTiles * x_tile::tile_tokens; i += apart) {
    if (i + first < problem.output.tokens) {
      copy(target + x_tile::chunk_offset(i + first, chunk), source, valid);
    }
    source += apart * problem.x_stride;
  }
}

// A stage's x, and every lane's arrival.
template <int TokenTiles>
SECATEUR_DEVICE void fill_x(uint32_t target, uint32_t full, const Problem& problem, int step,
                            int lane) {
  if (problem.x_aligned) {
    for_each_chunk<TokenTiles>(target, problem, step, lane,
                               [](uint32_t place, const uint16_t* source, int valid) {
                                 device::copy16(place, source, valid);
                               });
    device::barrier_arrive_after_copies(full);
  } else {
    for_each_chunk<TokenTiles>(target, problem, step, lane,
                               [](uint32_t place, const uint16_t* source, int valid) {
                                 device::store_shared16(place, read_eight(source, valid));
                               });
    // Plain stores: only a plain arrival publishes them.
    device::wait_for_copies();
    device::barrier_arrive(full);
  }
}

// The weights do not depend on the kernel in front: those of the first stages, as many as the ring
// has, are on their way before it has ended. With cp.async, whose arrivals count all copies before
// them, the first stage would then be full only when the last one is.
template <bool Bulk>
SECATEUR_DEVICE int fetch_early(const Problem& problem, Ring ring, Walk& walk, int units,
                                uint64_t policy, int lane) {
  if constexpr (!Bulk) return 0;
  const int early = units < problem.stages ? units : problem.stages;
  for (int i = 0; i < early; ++i) {
    fetch_weights<Bulk>(ring.weights(), ring.full(ring.stage), problem, walk, policy, lane);
    ring.advance();
    walk.advance(problem.schedule);
  }
  return early;
}

template <typename Shape, bool Bulk>
SECATEUR_DEVICE void produce(const Problem& problem, Ring ring, int lane) {
  const uint64_t policy = device::read_once_policy();
  const int first = problem.schedule.first_unit(device::block());
  const int units = problem.schedule.first_unit(device::block() + 1) - first;
  const uint32_t x = problem.block_panels * fragment24::unit_bytes;
  Walk walk = Walk::from(problem.schedule, first);
  Walk behind = walk;
  const int early = fetch_early<Bulk>(problem, ring, behind, units, policy, lane);
  device::mark(device::Point::weights_asked);
  // The successor asks for its first weights as soon as it runs, and fills the time in which sums
  // are added and y is written, if it does not run too early; but it takes a while to start.
  const int late = problem.lead == 0 ? 0 : units - problem.lead;
  if (late <= early) let_successor_start();
  Ahead ahead(behind, early, units);
  if constexpr (Bulk) ahead.ask(problem, early + problem.ahead, lane);
  device::wait_for_predecessor();
  device::mark(device::Point::predecessor_ended);
  for (int i = 0; i < units; ++i) {
    if (i == late && late > early) let_successor_start();
    const uint32_t full = ring.full(ring.stage);
    if (i >= early) {
      device::barrier_wait(ring.empty(ring.stage), ring.phase ^ 1);
      fetch_weights<Bulk>(ring.weights(), full, problem, walk, policy, lane);
    }
    fill_x<Shape::token_tiles>(ring.weights() + x, full, problem, walk.step, lane);
    device::mark(device::Point::x_asked, i == 0);
    device::mark(device::Point::last_asked, i == units - 1);
    if constexpr (Bulk) ahead.ask(problem, i + 1 + problem.ahead, lane);
    ring.advance();
    walk.advance(problem.schedule);
  }
  // cp.async must have landed before the thread leaves.
  device::wait_for_copies();
}

}  // namespace secateur::skinny
