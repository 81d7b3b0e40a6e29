// The warp that fills the ring: weights by bulk copies or cp.async, x by cp.async.
#pragma once

#include "secateur/device.h"
#include "secateur/skinny/problem.h"

namespace secateur::skinny {

// Arrivals that fill a stage: every lane's, and one that announces the bytes of bulk copies.
SECATEUR_INLINE constexpr int full_arrivals(bool bulk) { return warp_lanes + (bulk ? 1 : 0); }

// One unit of each of `panels` row panels, for the same 64 columns.
template <bool Bulk>
SECATEUR_DEVICE void fetch_weights(uint32_t target, uint32_t full, const uint8_t* source,
                                   int64_t panel_stride, int panels, uint64_t policy, int lane) {
  using fragment24::unit_bytes;
  if constexpr (Bulk) {
    if (lane == 0) device::barrier_arrive_expect(full, panels * unit_bytes);
    device::sync_warp();
    if (lane < panels) {
      device::copy_bulk(target + lane * unit_bytes, source + lane * panel_stride, unit_bytes, full,
                        policy);
    }
  } else {
    for (int panel = 0; panel < panels; ++panel) {
#pragma unroll
      for (int offset = 0; offset < unit_bytes; offset += 16 * warp_lanes) {
        const int at = offset + 16 * lane;
        device::copy16(target + panel * unit_bytes + at, source + panel * panel_stride + at, 16);
      }
    }
  }
}

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

// Columns [64 * step, 64 * step + 64) of all tokens; zeros beyond x in both directions.
template <int TokenTiles>
SECATEUR_DEVICE void fetch_x(uint32_t target, const Problem& problem, int step, int lane) {
  constexpr int chunks = TokenTiles * x_tile::tile_tokens * x_tile::chunks;
#pragma unroll
  for (int i = 0; i < chunks; i += warp_lanes) {
    const int token = (i + lane) / x_tile::chunks, chunk = (i + lane) % x_tile::chunks;
    const int column = step * x_tile::columns + chunk * x_tile::chunk_columns;
    const int valid = token < problem.output.tokens ? x_tile::valid_bytes(column, problem.columns) : 0;
    const uint32_t place = target + x_tile::chunk_offset(token, chunk);
    const uint16_t* source = static_cast<const uint16_t*>(problem.x);
    if (valid > 0) source += token * problem.x_stride + column;
    if (problem.x_aligned) {
      device::copy16(place, source, valid);
    } else {
      device::store_shared16(place, read_eight(source, valid));
    }
  }
}

template <typename Shape, bool Bulk>
SECATEUR_DEVICE void produce(const Problem& problem, Ring ring, int lane) {
  const Schedule& schedule = problem.schedule;
  const int panels = problem.block_panels;
  const int all_panels = fragment24::panels(problem.output.rows);
  const int64_t panel_stride = fragment24::unit_offset(1, 0, schedule.steps);
  const uint64_t policy = device::read_once_policy();
  const int end = schedule.first_unit(device::block() + 1);
  int unit = schedule.first_unit(device::block());
  while (unit < end) {
    const Segment segment = schedule.segment(unit, end);
    const int panel = segment.row_block * panels;
    const int here = all_panels - panel < panels ? all_panels - panel : panels;
    for (int step = segment.first; step < segment.end; ++step) {
      device::barrier_wait(ring.empty(ring.stage), ring.phase ^ 1);
      const uint32_t full = ring.full(ring.stage);
      const uint8_t* source =
          problem.weight + fragment24::unit_offset(panel, step, schedule.steps);
      fetch_weights<Bulk>(ring.weights(), full, source, panel_stride, here, policy, lane);
      fetch_x<Shape::token_tiles>(ring.weights() + panels * fragment24::unit_bytes, problem, step,
                                  lane);
      if (problem.x_aligned) {
        device::barrier_arrive_after_copies(full);
      } else {
        // Plain stores: only a plain arrival publishes them.
        device::wait_for_copies();
        device::barrier_arrive(full);
      }
      ring.advance();
    }
    unit += segment.end - segment.first;
  }
  // cp.async must have landed before the thread leaves.
  device::wait_for_copies();
}

}  // namespace secateur::skinny
