// The first kernel: partial sums of t = x @ down.T.
#pragma once

#include "secateur/low_rank/boxes/consumer.h"
#include "secateur/low_rank/boxes/producer.h"

namespace secateur::low_rank::boxes {

template <typename Shape>
struct DownFetch {
  const BoxDown& problem;
  const Range& range;

  static constexpr int weight_bytes = weight_box_bytes(Shape::row_tiles);

  SECATEUR_DEVICE void fetch_weights(uint32_t place, const Walk& walk, uint32_t full) const {
    fetch_boxes(place, problem.weight, range, walk.stage,
                {walk.block * Shape::row_tiles * tile_rows}, weight_bytes, full);
  }
  SECATEUR_DEVICE int ahead() const { return problem.down.division.ahead; }
  SECATEUR_DEVICE void prefetch_weights(const Walk& walk) const {
    prefetch_boxes(problem.weight, range, walk.stage,
                   {walk.block * Shape::row_tiles * tile_rows});
  }
  SECATEUR_DEVICE void fetch_operand(uint32_t place, const Walk& walk, uint32_t full) const {
    fetch_boxes(place + stage_boxes * weight_bytes, problem.x, range, walk.stage, {0},
                x_box_bytes(Shape::token_tiles), full);
  }
  // The second kernel, whose weights are to follow as soon as there is room for them.
  SECATEUR_DEVICE int stages_behind_successor(int) const { return max_size; }
};

// The warp's 32 columns of a stage.
template <typename Value, typename Shape>
SECATEUR_DEVICE void multiply_down_box(Sums<Shape>& sums, uint32_t stage, int warp, int lane) {
  const int box = warp / 2, half = warp % 2;
  const uint32_t tile = stage + box * weight_box_bytes(Shape::row_tiles);
  const uint32_t x = stage + stage_boxes * weight_box_bytes(Shape::row_tiles) +
                     box * x_box_bytes(Shape::token_tiles) +
                     box_offset(lane % 8, half * half_pieces + lane / 8);
  Words4 b[Shape::token_tiles];
#pragma unroll
  for (int n = 0; n < Shape::token_tiles; ++n) {
    b[n] = device::load_matrices(x + n * x_box_bytes(1));
  }
#pragma unroll
  for (int r = 0; r < Shape::row_tiles; ++r) {
    const Weights w = load_box_weights(tile + r * weight_box_bytes(1), half, lane);
#pragma unroll
    for (int n = 0; n < Shape::token_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        device::multiply_dense<Value>(sums[r][n], w.half[i], b[n].word[2 * i],
                                      b[n].word[2 * i + 1]);
      }
    }
  }
}

// A tile of t, 16 rows and eight tokens.
SECATEUR_DEVICE void write_hidden(const Down& down, int split, int first_row, int first_token,
                                  const float (&total)[accumulator::items], int lane) {
  float* slot = down.hidden + static_cast<int64_t>(split) * down.tokens * down.rows;
#pragma unroll
  for (int i = 0; i < accumulator::items; ++i) {
    const int row = first_row + accumulator::row(lane, i);
    const int token = first_token + accumulator::token(lane, i);
    if (row < down.rows && token < down.tokens) {
      device::store(slot + static_cast<int64_t>(token) * down.rows + row, total[i]);
    }
  }
}

// Thread block `splits * b + s` takes row block b and the s-th range of columns. Those of a cluster
// leave one sum.
template <typename Value, typename Shape>
SECATEUR_DEVICE void run_down(const BoxDown& problem, uint32_t shared) {
  const Down& down = problem.down;
  const int warp = device::thread() / warp_lanes, lane = device::lane();
  const int block = device::block() / down.splits, split = device::block() % down.splits;
  const Range range = range_of(down.columns, split, down.splits);
  const Places places(shared, down.division, 0, Exchange<Shape>::tiles, problem.cluster);
  Exchange<Shape> exchange{places.inboxes, places.meeting + 8, problem.cluster};
  Ring ring = places.ring_of(down.division);
  if (device::thread() == 0) init_barriers(places, down.division.stages, 2, exchange);
  device::sync_block();
  // Awaited before sums are handed over.
  if (problem.cluster > 1) device::cluster_arrive_relaxed();
  if (warp == warps) {
    if (lane == 0) {
      device::prefetch_map(problem.x);
      produce(DownFetch<Shape>{problem, range}, ring, Walk{block}, range, range.stages());
    }
    device::sync_warp();
    if (problem.cluster > 1) device::cluster_wait();
    return;
  }
  Sums<Shape> sums;
  clear_sums(sums);
  for_each_stage(ring, range, warp, lane, [&](uint32_t place, int) {
    multiply_down_box<Value, Shape>(sums, place, warp, lane);
  });
  Meeting meeting{places.meeting};
  float total[accumulator::items];
  add_warps<Shape>(sums, total, places.sums, meeting, warp, lane);
  const bool mine = exchange.add(total, warp, lane);
  device::wait_for_predecessor();  // which may still read what is overwritten here
  if (!mine) return;
  const int row_tile = block * Shape::row_tiles + warp / Shape::token_tiles;
  write_hidden(down, split / problem.cluster, row_tile * tile_rows,
               warp % Shape::token_tiles * accumulator::tile_tokens, total, lane);
}

}  // namespace secateur::low_rank::boxes
