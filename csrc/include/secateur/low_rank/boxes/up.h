// The second kernel: y = epilogue(t @ up.T).
#pragma once

#include "secateur/low_rank/boxes/consumer.h"
#include "secateur/low_rank/boxes/producer.h"
#include "secateur/low_rank/hidden.h"
#include "secateur/low_rank/up.h"

namespace secateur::low_rank::boxes {

template <typename Shape>
struct UpFetch {
  const BoxUp& problem;
  const Range& range;

  SECATEUR_DEVICE void fetch_weights(uint32_t place, const Walk& walk, uint32_t full) const {
    const int row = row_block(problem.up, walk.block, Shape::row_tiles).rows.first[0];
    fetch_boxes(place, problem.weight, range, walk.stage, row, weight_box_bytes(Shape::row_tiles),
                full);
  }
  SECATEUR_DEVICE void fetch_operand(uint32_t, const Walk&, uint32_t) const {}
  // The next layer is to fill its rings while nothing else is fetched: while the last stages are
  // multiplied and y is written.
  SECATEUR_DEVICE int stages_behind_successor(int early) const { return (early + 1) / 2; }
};

template <typename Value, typename Shape>
struct UpWarp {
  const Up& up;
  const Places& places;
  const Range& range;
  Exchange<Shape> exchange;
  Meeting meeting;
  int warp;
  int lane;
  int group = -1;  // whose t is in shared memory
  bool all_finite = true;

  SECATEUR_DEVICE uint32_t place_of(int chunk) const {
    return places.hidden + chunk * up.output.tokens * hidden_row_bytes;
  }

  // t of the group that begins here. Nobody reads what was there before: all warps have met since.
  SECATEUR_DEVICE void begin(int now) {
    if (now == group) return;
    group = now;
    bool finite = true;
    const int first = range.first / chunk_boxes;
    const int count = static_cast<int>(ceil_div(range.end - range.first, chunk_boxes));
#pragma unroll 1
    for (int chunk = warp; chunk < count; chunk += warps) {
      finite = load_hidden(place_of(chunk), up, group, first + chunk, lane) && finite;
    }
    finite = !device::any(!finite);
    if (lane == 0) device::store_shared4(places.flags + 4 * warp, finite);
    meeting.meet(lane);
    all_finite = !device::any(device::load_shared4(places.flags + 4 * (lane % warps)) == 0);
  }

  // The warp's 32 columns of a stage, row tiles First to First + Count - 1. `t`: of its block.
  template <bool Guard, int First, int Count>
  SECATEUR_DEVICE void multiply_tiles(Sums<Shape>& sums, uint32_t tile, uint32_t t) const {
    Weights w[Shape::row_tiles];
#pragma unroll
    for (int r = First; r < First + Count; ++r) {
      w[r] = load_box_weights(tile + r * weight_box_bytes(1), warp % 2, lane);
    }
#pragma unroll
    for (int n = 0; n < Shape::token_tiles; ++n) {
      const int token = token_of(lane / 4, n, up.output.tokens);
      multiply_pieces<Value, Guard, First, Count, Shape>(sums, w, n,
                                                         t + hidden_operand_offset(token, lane));
    }
  }
  template <bool Guard>
  SECATEUR_DEVICE void multiply(Sums<Shape>& sums, uint32_t place, int stage) const {
    constexpr int chunk_warps = blocks_per_chunk;
    const uint32_t tile = place + warp / 2 * weight_box_bytes(Shape::row_tiles);
    const uint32_t t = place_of(stage * stage_boxes / chunk_boxes + warp / chunk_warps) +
                       warp % chunk_warps * hidden_block_bytes;
    if constexpr (Shape::row_tiles * Shape::token_tiles == 8) {
      // Not all at once, though t is cut twice: weights of four tiles do not fit into registers.
      multiply_tiles<Guard, 0, 2>(sums, tile, t);
      device::sync_warp();
      multiply_tiles<Guard, 2, 2>(sums, tile, t);
    } else {
      multiply_tiles<Guard, 0, Shape::row_tiles>(sums, tile, t);
    }
  }

  SECATEUR_DEVICE void write(const Rows& rows, const float (&total)[accumulator::items]) const {
    const int row = rows.first[0] + warp / Shape::token_tiles * tile_rows;
    const int token = warp % Shape::token_tiles * accumulator::tile_tokens;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = row + 8 * half;
      const float bias = bias_of<Value>(up.output, first + lane / 4);
      write_eight_columns<Value, 1>(
          up.output, first, token, [&](int, int i) { return total[2 * half + i] + bias; },
          rows.end[0]);
    }
  }

  SECATEUR_DEVICE void run(Ring ring, int first, int end) {
    device::wait_for_predecessor();
#pragma unroll 1
    for (int block = first; block < end; ++block) {
      const RowBlock now = row_block(up, block, Shape::row_tiles);
      begin(now.group);
      Sums<Shape> sums;
      clear_sums(sums);
      for_each_stage(ring, range, warp, lane, [&](uint32_t place, int stage) {
        if (all_finite) {
          multiply<false>(sums, place, stage);
        } else {
          multiply<true>(sums, place, stage);
        }
      });
      if (block != first) meeting.meet(lane);  // the sums of the block before have been read
      float total[accumulator::items];
      add_warps<Shape>(sums, total, places.sums, meeting, warp, lane);
      if (exchange.add(total, warp, lane)) write(now.rows, total);
    }
  }
};

template <typename Value, typename Shape>
SECATEUR_DEVICE void run_up(const BoxUp& problem, uint32_t shared) {
  const Up& up = problem.up;
  const int warp = device::thread() / warp_lanes, lane = device::lane();
  const int cluster = problem.cluster, rank = device::block() % cluster;
  const int first = first_row_block(up, device::block() / cluster);
  const int end = first_row_block(up, device::block() / cluster + 1);
  const Range range = range_of(up.rank, rank, cluster);
  const Places places(shared, up.division, hidden_bytes(up.rank, up.output.tokens, cluster),
                      Exchange<Shape>::tiles, cluster);
  const Exchange<Shape> exchange{places.inboxes, places.meeting + 8, cluster};
  const Ring ring{places.ring, places.barriers, up.division};
  if (device::thread() == 0) init_barriers(places, up.division.stages, 1, exchange);
  device::sync_block();
  // Awaited before sums are handed over.
  if (cluster > 1) device::cluster_arrive_relaxed();
  if (warp == warps) {
    if (lane == 0) {
      produce(UpFetch<Shape>{problem, range}, ring, Walk{first}, range,
              (end - first) * range.stages());
    }
    device::sync_warp();
    if (cluster > 1) device::cluster_wait();
    return;
  }
  UpWarp<Value, Shape>{up, places, range, exchange, {places.meeting}, warp, lane}.run(ring, first,
                                                                                      end);
}

}  // namespace secateur::low_rank::boxes
