// The second kernel: y = epilogue(t @ up.T). Gated: for SiLU-and-multiply, with an even number of
// row tiles; the first half of them are gate rows, the others the up rows of the same features.
#pragma once

#include "secateur/low_rank/boxes/consumer.h"
#include "secateur/low_rank/boxes/producer.h"
#include "secateur/low_rank/hidden.h"
#include "secateur/low_rank/up.h"

namespace secateur::low_rank::boxes {

template <typename Shape, bool Gated>
struct UpFetch {
  const BoxUp& problem;
  const Range& range;

  SECATEUR_DEVICE void fetch_weights(uint32_t place, const Walk& walk, uint32_t full) const {
    constexpr int bytes = weight_box_bytes(Shape::row_tiles);
    const Rows rows = row_block(problem.up, walk.block, Shape::row_tiles).rows;
    if constexpr (Gated) {
      fetch_boxes(place, problem.weight, range, walk.stage, rows.first, bytes, full);
    } else {
      fetch_boxes(place, problem.weight, range, walk.stage, {rows.first[0]}, bytes, full);
    }
  }
  SECATEUR_DEVICE int ahead() const { return problem.up.division.ahead; }
  SECATEUR_DEVICE void prefetch_weights(const Walk& walk) const {
    const Rows rows = row_block(problem.up, walk.block, Shape::row_tiles).rows;
    if constexpr (Gated) {
      prefetch_boxes(problem.weight, range, walk.stage, rows.first);
    } else {
      prefetch_boxes(problem.weight, range, walk.stage, {rows.first[0]});
    }
  }
  SECATEUR_DEVICE void fetch_operand(uint32_t, const Walk&, uint32_t) const {}
  // The next layer is to fill its rings while nothing else is fetched: while the last stages are
  // multiplied and y is written.
  SECATEUR_DEVICE int stages_behind_successor(int early) const { return (early + 1) / 2; }
};

// Gate and up rows of eight features into one accumulator each, as epilogues want them: the first
// eight of 16 features take the place of the gate rows' tile, the others that of the up rows'.
template <int RowTiles, int TokenTiles>
SECATEUR_DEVICE void pair_rows(WarpSums<RowTiles, TokenTiles>& sums) {
  constexpr int half = RowTiles / 2;
#pragma unroll
  for (int r = 0; r < half; ++r) {
#pragma unroll
    for (int n = 0; n < TokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float upper = sums[r + half][n][i];
        sums[r + half][n][i] = sums[r][n][2 + i];
        sums[r][n][2 + i] = upper;
      }
    }
  }
}

template <typename Value, typename Shape, bool Gated>
struct UpWarp {
  static constexpr int half_tiles = Shape::row_tiles / 2;

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
  SECATEUR_DEVICE int own_chunks() const {
    return static_cast<int>(ceil_div(range.end - range.first, chunk_boxes));
  }
  // How far t of the up rows is from that of the gate rows: 0 where they share it.
  SECATEUR_DEVICE int apart() const {
    return Gated && hidden_sets(up) == 2 ? place_of(own_chunks()) - place_of(0) : 0;
  }

  // t of the group that begins here, or of both. Nobody reads what was there before: all warps have
  // met since.
  SECATEUR_DEVICE void begin(int now) {
    if (now == group) return;
    group = now;
    bool finite = true;
    const int first = range.first / chunk_boxes;
    const int count = own_chunks();
#pragma unroll 1
    for (int chunk = warp; chunk < count; chunk += warps) {
      finite = load_hidden(place_of(chunk), up, group, first + chunk, lane) && finite;
    }
    if constexpr (Gated) {
      const int both = hidden_sets(up) * count;
#pragma unroll 1
      for (int chunk = count + warp; chunk < both; chunk += warps) {
        finite =
            load_hidden(place_of(chunk), up, group + 1, first + chunk - count, lane) && finite;
      }
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
      multiply_tiles<Guard, 2, 2>(sums, tile, t + apart());
    } else if (Gated && hidden_sets(up) == 2) {
      multiply_tiles<Guard, 0, half_tiles>(sums, tile, t);
      multiply_tiles<Guard, half_tiles, half_tiles>(sums, tile, t + apart());
    } else {
      multiply_tiles<Guard, 0, Shape::row_tiles>(sums, tile, t);
    }
  }

  SECATEUR_DEVICE void write(const Rows& rows, const float (&total)[accumulator::items]) const {
    const int token = warp % Shape::token_tiles * accumulator::tile_tokens;
    if constexpr (Gated) {
      const int tile = warp / Shape::token_tiles;
      const int feature = tile % half_tiles * tile_rows + tile / half_tiles * 8;
      const float gate_bias = bias_of<Value>(up.output, rows.first[0] + feature + lane / 4);
      const float up_bias = bias_of<Value>(up.output, rows.first[1] + feature + lane / 4);
      write_eight_columns<Value, 1>(
          up.output, rows.first[0] + feature, token,
          [&](int, int i) { return silu(total[i] + gate_bias) * (total[2 + i] + up_bias); },
          rows.end[0]);
      return;
    }
    const int row = rows.first[0] + warp / Shape::token_tiles * tile_rows;
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
      if constexpr (Gated) pair_rows(sums);
      if (block != first) meeting.meet(lane);  // the sums of the block before have been read
      float total[accumulator::items];
      add_warps<Shape>(sums, total, places.sums, meeting, warp, lane);
      if (exchange.add(total, warp, lane)) write(now.rows, total);
    }
  }
};

template <typename Value, typename Shape, bool Gated>
SECATEUR_DEVICE void run_up(const BoxUp& problem, uint32_t shared) {
  const Up& up = problem.up;
  const int warp = device::thread() / warp_lanes, lane = device::lane();
  const int cluster = problem.cluster, rank = device::block() % cluster;
  const int first = first_row_block(up, device::block() / cluster);
  const int end = first_row_block(up, device::block() / cluster + 1);
  const Range range = range_of(up.rank, rank, cluster);
  const int sets = Gated ? hidden_sets(up) : 1;
  const Places places(shared, up.division, sets * hidden_bytes(up.rank, up.output.tokens, cluster),
                      Exchange<Shape>::tiles, cluster);
  const Exchange<Shape> exchange{places.inboxes, places.meeting + 8, cluster};
  const Ring ring = places.ring_of(up.division);
  if (device::thread() == 0) init_barriers(places, up.division.stages, 1, exchange);
  device::sync_block();
  // Awaited before sums are handed over.
  if (cluster > 1) device::cluster_arrive_relaxed();
  if (warp == warps) {
    if (lane == 0) {
      produce(UpFetch<Shape, Gated>{problem, range}, ring, Walk{first}, range,
              (end - first) * range.stages());
    }
    device::sync_warp();
    if (cluster > 1) device::cluster_wait();
    return;
  }
  UpWarp<Value, Shape, Gated> self{up, places, range, exchange, {places.meeting}, warp, lane};
  self.run(ring, first, end);
}

}  // namespace secateur::low_rank::boxes
