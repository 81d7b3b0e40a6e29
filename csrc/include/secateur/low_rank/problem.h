// y = epilogue((x @ down.T) @ up.T [+ x @ sparse.T]) for few tokens, in two kernels: the first
// leaves partial sums of t = x @ down.T, the second adds them and multiplies by up. In both a
// thread block owns 16 or 32 rows of a factor at a time, and its warps split the columns.
#pragma once

#include "secateur/accumulator.h"
#include "secateur/common.h"
#include "secateur/fragment24.h"
#include "secateur/output.h"
#include "secateur/ring.h"
#include "secateur/x_tile.h"

namespace secateur::low_rank {

constexpr int max_tokens = 64;
constexpr int max_warps = 8;
constexpr int max_stages = 16;
constexpr int max_splits = 64;
constexpr int max_groups = 8;

constexpr int tile_rows = 16;  // m of the instruction
// A stage holds this many columns of a warp's rows.
constexpr int chunk_columns = 128;
constexpr int row_bytes = 2 * chunk_columns;
constexpr int tile_bytes = tile_rows * row_bytes;
// The 2:4 weights of a stage: two steps of 64 columns.
constexpr int chunk_steps = chunk_columns / fragment24::unit_columns;

SECATEUR_INLINE constexpr int chunks(int columns) {
  return static_cast<int>(ceil_div(columns, chunk_columns));
}

// A warp computes RowTiles tiles of 16 rows and TokenTiles groups of eight tokens.
template <int RowTiles_, int TokenTiles_>
struct Shape {
  static constexpr int row_tiles = RowTiles_;
  static constexpr int token_tiles = TokenTiles_;
};

// The rows that a thread block works on at a time: tile r begins at first[r], and rows from end[r]
// on are not its own.
struct Rows {
  int first[2];
  int end[2];
};

// How a thread block's warps take turns.
struct Division {
  int warps;
  int stages;       // of each warp's ring
  int stage_bytes;
  int ahead;  // stages behind those in the ring that are asked for into the L2 cache; with boxes
};

// t = x @ down.T: [splits, tokens, rows] in fp32, to be added over the splits.
struct Down {
  const void* x;       // [tokens, columns], the last dimension contiguous
  const void* weight;  // [rows, columns], contiguous
  float* hidden;
  int64_t x_stride;  // elements from row to row
  int tokens;
  int rows;
  int columns;
  bool x_aligned;       // rows start at multiples of 16 bytes
  bool weight_aligned;  // likewise
  int splits;           // of the columns, over thread blocks
  Division division;
};

// y = epilogue(t @ up.T + x @ sparse.T).
struct Up {
  const void* weight;   // [output.rows, rank], contiguous, rows at multiples of 16 bytes
  const float* hidden;  // [splits, tokens, hidden_columns]
  int rank;
  int hidden_columns;  // groups * rank
  int splits;
  int groups;
  int group_end[max_groups];  // rows up to which a group reaches
  Output output;              // gate_up: a thread block's tiles are gate rows and their up rows
  const uint8_t* sparse;      // fragment order, or null
  const void* x;              // as of Down; only with `sparse`
  int64_t x_stride;
  int columns;
  bool x_aligned;
  int row_blocks;
  int blocks;  // thread blocks
  Division division;
};

// Columns of t are those of the row's group. With gate_up and two groups the two tiles differ.
SECATEUR_INLINE constexpr int hidden_sets(const Up& up) {
  return up.output.gate_up && up.groups == 2 ? 2 : 1;
}

SECATEUR_INLINE constexpr int group_start(const Up& up, int group) {
  return group == 0 ? 0 : up.group_end[group - 1];
}

// Row blocks never cross from one group into the next.
SECATEUR_INLINE constexpr int group_blocks(const Up& up, int group, int row_tiles) {
  return static_cast<int>(
      ceil_div(up.group_end[group] - group_start(up, group), tile_rows * row_tiles));
}

// With gate_up half of a row block's tiles are gate rows, the others the up rows of the same
// features.
SECATEUR_INLINE constexpr int gated_features(int row_tiles) {
  return tile_rows * ((row_tiles + 1) / 2);
}

SECATEUR_INLINE constexpr int row_blocks(const Up& up, int row_tiles) {
  if (up.output.gate_up) {
    return static_cast<int>(ceil_div(up.output.rows / 2, gated_features(row_tiles)));
  }
  int blocks = 0;
  for (int group = 0; group < up.groups; ++group) blocks += group_blocks(up, group, row_tiles);
  return blocks;
}

// The rows of a row block, with gate_up the first tile of either kind; and their group (the first
// of two with gate_up).
struct RowBlock {
  Rows rows;
  int group;
};

SECATEUR_INLINE constexpr RowBlock row_block(const Up& up, int block, int row_tiles) {
  if (up.output.gate_up) {
    const int half = up.output.rows / 2, feature = block * gated_features(row_tiles);
    return {{{feature, half + feature}, {half, up.output.rows}}, 0};
  }
  int group = 0;
  while (block >= group_blocks(up, group, row_tiles)) {
    block -= group_blocks(up, group, row_tiles);
    ++group;
  }
  const int first = group_start(up, group) + block * tile_rows * row_tiles;
  const int end = up.group_end[group];
  return {{{first, first + tile_rows}, {end, end}}, group};
}

// ---- shared memory: rings of all warps, t, sums on their way to one warp, mbarriers ----

SECATEUR_INLINE constexpr int down_stage_bytes(int row_tiles, int tokens) {
  return row_tiles * tile_bytes + tokens * row_bytes;
}

// Behind the weights: x in tiles of 64 columns.
SECATEUR_INLINE constexpr int sparse_stage_weights(int row_tiles) {
  return row_tiles * chunk_steps * fragment24::tile_bytes;
}

SECATEUR_INLINE constexpr int up_stage_bytes(int row_tiles, int token_tiles, bool sparse) {
  const int dense = row_tiles * tile_bytes;
  const int packed = sparse_stage_weights(row_tiles) + chunk_steps * x_tile::bytes(token_tiles);
  return sparse && packed > dense ? packed : dense;
}

SECATEUR_INLINE constexpr int rings_bytes(const Division& d) {
  return d.warps * d.stages * d.stage_bytes;
}

// t of one chunk: 512 bytes a token.
constexpr int hidden_row_bytes = 4 * chunk_columns;
SECATEUR_INLINE constexpr int64_t hidden_bytes(const Up& up) {
  return static_cast<int64_t>(hidden_sets(up)) * chunks(up.rank) * up.output.tokens *
         hidden_row_bytes;
}

// The sums of a warp.
SECATEUR_INLINE constexpr int sums_bytes(int row_tiles, int token_tiles) {
  return row_tiles * token_tiles * accumulator::tile_bytes;
}

// Two sets of them, used in turns, and a mbarrier a stage.
SECATEUR_INLINE constexpr int64_t shared_bytes(const Division& d, int row_tiles, int token_tiles,
                                               int64_t hidden) {
  return static_cast<int64_t>(rings_bytes(d)) + hidden +
         2 * d.warps * sums_bytes(row_tiles, token_tiles) + 8 * d.warps * d.stages;
}

// Only where others fill it than read it are there barriers of stages that are empty.
struct Ring : RingPlace {
  uint32_t barriers;
  const int& stage_bytes;

  SECATEUR_INLINE uint32_t place() const { return base + stage * stage_bytes; }
  SECATEUR_INLINE uint32_t full() const { return barriers + 8 * stage; }
  SECATEUR_INLINE uint32_t empty() const { return barriers + 8 * (stages + stage); }
};

}  // namespace secateur::low_rank
