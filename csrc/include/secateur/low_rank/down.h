// The first kernel: partial sums of t = x @ down.T.
#pragma once

#include "secateur/low_rank/block.h"

namespace secateur::low_rank {

template <typename Value, typename Shape>
struct DownTask {
  const Down& down;
  int split;

  SECATEUR_DEVICE int first_row(int block) const {
    return block * tile_rows * Shape::row_tiles;
  }
  SECATEUR_DEVICE void fetch_weights(uint32_t place, int block, int chunk, int lane) const {
    const Matrix weight{down.weight, down.columns, down.columns, down.weight_aligned};
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) {
      fetch_tile(place + r * tile_bytes, weight, chunk, first_row(block) + r * tile_rows, down.rows,
                 lane);
    }
  }
  SECATEUR_DEVICE void fetch_operand(uint32_t place, int chunk, int lane) const {
    const Matrix x{down.x, down.x_stride, down.columns, down.x_aligned};
    fetch_tokens(place + Shape::row_tiles * tile_bytes, x, down.tokens, chunk, lane);
  }
  SECATEUR_DEVICE void announce_stage(uint32_t full, int) const {
    announce(full, down.weight_aligned && down.x_aligned);
  }
  SECATEUR_DEVICE void begin(int, int) const {}

  template <typename>
  SECATEUR_DEVICE void multiply(Sums<Shape>& sums, uint32_t place, int chunk, int lane) const {
    multiply_down<Value, Shape>(sums, place, place + Shape::row_tiles * tile_bytes,
                                blocks_of(chunk, down.columns), down.tokens, lane);
  }

  SECATEUR_DEVICE void finish(int block, const Sums<Shape>& sums) const {
    const int lane = device::lane();
    float* slot = down.hidden + static_cast<int64_t>(split) * down.tokens * down.rows;
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) {
#pragma unroll
      for (int n = 0; n < Shape::token_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < accumulator::items; ++i) {
          const int row = first_row(block) + r * tile_rows + accumulator::row(lane, i);
          const int token = n * accumulator::tile_tokens + accumulator::token(lane, i);
          if (row < down.rows && token < down.tokens) {
            device::store(slot + static_cast<int64_t>(token) * down.rows + row, sums[r][n][i]);
          }
        }
      }
    }
  }
};

// Thread block `splits * b + s` takes row block b and the s-th range of chunks.
template <typename Value, typename Shape>
SECATEUR_DEVICE void run_down(const Down& down, uint32_t shared) {
  const int warp = device::thread() / warp_lanes, lane = device::lane();
  const int block = device::block() / down.splits, split = device::block() % down.splits;
  const int all = chunks(down.columns);
  const int first = split * all / down.splits, end = (split + 1) * all / down.splits;
  const Places places(shared, down.division, 0,
                      sums_bytes(Shape::row_tiles, Shape::token_tiles));
  const Cursor cursor{block, first + warp, block + 1, first + warp, end};
  DownTask<Value, Shape> task{down, split};
  run_block<Shape>(task, down.division, places, shared, cursor, warp, lane);
  device::wait_for_copies();
}

}  // namespace secateur::low_rank
