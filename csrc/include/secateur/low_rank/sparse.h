// The 2:4 part of a stage of the second kernel: mma.sp into the same sums.
#pragma once

#include "secateur/low_rank/multiply.h"

namespace secateur::low_rank {

// `gate_up`: packed sub-tiles hold eight gate rows and their eight up rows, but the sums 16 gate
// rows and then 16 up rows: two accumulators of each go to either.
template <typename Value, int Selector, typename Shape>
SECATEUR_DEVICE void multiply_fragment(Sums<Shape>& sums, const Words4 (&values)[Shape::row_tiles],
                                       const uint32_t (&metadata)[Shape::row_tiles], int n,
                                       Words4 tokens, bool gate_up) {
  if constexpr (Shape::row_tiles == 2) {
    if (gate_up) {
      float first[4] = {sums[0][n][0], sums[0][n][1], sums[1][n][0], sums[1][n][1]};
      float second[4] = {sums[0][n][2], sums[0][n][3], sums[1][n][2], sums[1][n][3]};
      device::multiply_sparse<Value, Selector>(first, values[0], tokens, metadata[0]);
      device::multiply_sparse<Value, Selector>(second, values[1], tokens, metadata[1]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sums[0][n][i] = first[i], sums[1][n][i] = first[2 + i];
        sums[0][n][2 + i] = second[i], sums[1][n][2 + i] = second[2 + i];
      }
      return;
    }
  }
#pragma unroll
  for (int r = 0; r < Shape::row_tiles; ++r) {
    device::multiply_sparse<Value, Selector>(sums[r][n], values[r], tokens, metadata[r]);
  }
}

// One step of 64 columns. `weights`: the sub-tile of the first row tile; those of the next are
// `chunk_steps` sub-tiles further.
template <typename Value, typename Shape>
SECATEUR_DEVICE void multiply_step(Sums<Shape>& sums, uint32_t weights, uint32_t x, bool gate_up,
                                   int lane) {
  using namespace fragment24;
  constexpr int apart = chunk_steps * fragment24::tile_bytes;
  const uint32_t operand = x + x_tile::operand_offset(lane);
  uint32_t metadata[Shape::row_tiles];
#pragma unroll
  for (int r = 0; r < Shape::row_tiles; ++r) {
    metadata[r] = device::load_shared4(weights + r * apart + metadata_offset(lane));
  }
#pragma unroll
  for (int fragment = 0; fragment < 2; ++fragment) {
    Words4 values[Shape::row_tiles];
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) {
      values[r] = device::load_shared16(weights + r * apart + value_offset(fragment, lane));
    }
#pragma unroll
    for (int n = 0; n < Shape::token_tiles; ++n) {
      const Words4 tokens = device::load_matrices((operand ^ (fragment * x_tile::second_fragment)) +
                                                  n * x_tile::token_tile_bytes);
      if (fragment == 0) {
        multiply_fragment<Value, 0, Shape>(sums, values, metadata, n, tokens, gate_up);
      } else {
        multiply_fragment<Value, 1, Shape>(sums, values, metadata, n, tokens, gate_up);
      }
      // Loads of four tiles in flight: more do not fit into registers.
      if (n % 4 == 3) device::sync_warp();
    }
  }
}

// Sub-tiles of a row block, as they are counted over the whole packed weight; beyond its end the
// last one, whose sums nobody writes.
template <int RowTiles>
SECATEUR_DEVICE void sparse_tiles(int64_t (&tile)[RowTiles], const Up& up, const Rows& rows) {
  const int64_t last =
      int64_t{fragment24::panels(up.output.rows)} * fragment24::tiles_per_unit - 1;
  const int64_t first = up.output.gate_up ? rows.first[0] / 8 : rows.first[0] / tile_rows;
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) tile[r] = first + r < last ? first + r : last;
}

}  // namespace secateur::low_rank
