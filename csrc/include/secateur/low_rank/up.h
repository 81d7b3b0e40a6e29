// The second kernel: y = epilogue(t @ up.T + x @ sparse.T).
#pragma once

#include "secateur/low_rank/block.h"
#include "secateur/low_rank/hidden.h"
#include "secateur/low_rank/sparse.h"
#include "secateur/write_tile.h"

namespace secateur::low_rank {

// Chunks of the rank come first, then those of the 2:4 weight's columns.
template <typename Value, typename Shape, bool Sparse>
struct UpTask {
  const Up& up;
  uint32_t hidden;
  int first_chunk;
  int group = -1;  // whose t the warp has in shared memory
  bool all_finite = true;

  SECATEUR_DEVICE int rank_chunks() const { return chunks(up.rank); }
  SECATEUR_DEVICE Rows rows(int block) const {
    return row_block(up, block, Shape::row_tiles).rows;
  }

  SECATEUR_DEVICE void fetch_weights(uint32_t place, int block, int chunk, int lane) const {
    const Rows rows = this->rows(block);
    if (!Sparse || chunk < rank_chunks()) {
      const Matrix weight{up.weight, up.rank, up.rank, true};
#pragma unroll
      for (int r = 0; r < Shape::row_tiles; ++r) {
        fetch_tile(place + r * tile_bytes, weight, chunk, rows.first[r], rows.end[r], lane);
      }
      return;
    }
    int64_t tile[Shape::row_tiles];
    sparse_tiles(tile, up, rows);
    fetch_sparse_weights(place, up.sparse, tile, chunk - rank_chunks(),
                         fragment24::steps(up.columns), lane);
  }

  SECATEUR_DEVICE void fetch_operand(uint32_t place, int chunk, int lane) const {
    if (!Sparse || chunk < rank_chunks()) return;
    const Matrix x{up.x, up.x_stride, up.columns, up.x_aligned};
    fetch_sparse_tokens<Shape::token_tiles>(place + sparse_stage_weights(Shape::row_tiles), x,
                                            up.output.tokens, chunk - rank_chunks(), lane);
  }

  SECATEUR_DEVICE void announce_stage(uint32_t full, int chunk) const {
    announce(full, !Sparse || up.x_aligned || chunk < rank_chunks());
  }

  // t of the group that begins here: of the chunks that this warp multiplies, and nobody else.
  SECATEUR_DEVICE void begin(int block, int lane) {
    const int now = row_block(up, block, Shape::row_tiles).group;
    if (now == group) return;
    group = now;
    all_finite = true;
    device::sync_warp();
    for (int set = 0; set < hidden_sets(up); ++set) {
      for (int chunk = first_chunk; chunk < rank_chunks(); chunk += up.division.warps) {
        const uint32_t place = place_of(set, chunk);
        all_finite = load_hidden(place, up, group + set, chunk, lane) && all_finite;
      }
    }
    all_finite = !device::any(!all_finite);
    device::sync_warp();
  }
  SECATEUR_DEVICE uint32_t place_of(int set, int chunk) const {
    return hidden + (set * rank_chunks() + chunk) * up.output.tokens * hidden_row_bytes;
  }

  template <typename>
  SECATEUR_DEVICE void multiply(Sums<Shape>& sums, uint32_t place, int chunk, int lane) const {
    if (!Sparse || chunk < rank_chunks()) {
      const int apart = hidden_sets(up) == 2 ? place_of(1, 0) - place_of(0, 0) : 0;
      const uint32_t t = place_of(0, chunk);
      const int blocks = blocks_of(chunk, up.rank), tokens = up.output.tokens;
      if (all_finite) {
        multiply_up<Value, false, Shape>(sums, place, t, apart, blocks, tokens, lane);
      } else {
        multiply_up<Value, true, Shape>(sums, place, t, apart, blocks, tokens, lane);
      }
      return;
    }
    const uint32_t x = place + sparse_stage_weights(Shape::row_tiles);
    const int left = fragment24::steps(up.columns) - (chunk - rank_chunks()) * chunk_steps;
#pragma unroll 1
    for (int step = 0; step < chunk_steps; ++step) {
      if (step >= left) break;
      multiply_step<Value, Shape>(sums, place + step * fragment24::tile_bytes,
                                  x + step * x_tile::bytes(Shape::token_tiles), up.output.gate_up,
                                  lane);
    }
  }

  SECATEUR_DEVICE void finish(int block, const Sums<Shape>& sums) const {
    const Rows rows = this->rows(block);
    if constexpr (Shape::row_tiles == 2) {
      if (up.output.silu_and_mul) {
        write_gated(rows, sums);
        return;
      }
    }
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int first = rows.first[r] + 8 * half;
        const float bias = bias_of<Value>(up.output, first + device::lane() / 4);
        write_eight_columns<Value, Shape::token_tiles>(
            up.output, first, 0, [&](int n, int i) { return sums[r][n][2 * half + i] + bias; },
            rows.end[r]);
        device::sync_warp();  // one after the other: together they take too many registers
      }
    }
  }

  // Gate rows in the first tile, the up rows of the same features in the second.
  SECATEUR_DEVICE void write_gated(const Rows& rows, const Sums<Shape>& sums) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 8 * half + device::lane() / 4;
      const float gate_bias = bias_of<Value>(up.output, rows.first[0] + row);
      const float up_bias = bias_of<Value>(up.output, rows.first[1] + row);
      write_eight_columns<Value, Shape::token_tiles>(
          up.output, rows.first[0] + 8 * half, 0,
          [&](int n, int i) {
            return silu(sums[0][n][2 * half + i] + gate_bias) *
                   (sums[1][n][2 * half + i] + up_bias);
          },
          rows.end[0]);
      device::sync_warp();
    }
  }
};

// Thread blocks take contiguous ranges of row blocks, the first of them one more where they cannot
// all be of equal length.
SECATEUR_INLINE constexpr int first_row_block(const Up& up, int block) {
  const int more = up.row_blocks % up.blocks;
  return block * (up.row_blocks / up.blocks) + (block < more ? block : more);
}

template <typename Value, typename Shape, bool Sparse>
SECATEUR_DEVICE void run_up(const Up& up, uint32_t shared) {
  const int warp = device::thread() / warp_lanes, lane = device::lane();
  const int block = device::block();
  const int first = first_row_block(up, block), end = first_row_block(up, block + 1);
  const Places places(shared, up.division, hidden_bytes(up),
                      sums_bytes(Shape::row_tiles, Shape::token_tiles));
  const int all = chunks(up.rank) + (Sparse ? chunks(up.columns) : 0);
  const Cursor cursor{first, warp, end, warp, all};
  UpTask<Value, Shape, Sparse> task{up, places.hidden, warp};
  run_block<Shape>(task, up.division, places, shared, cursor, warp, lane);
  device::wait_for_copies();
}

}  // namespace secateur::low_rank
