// y = epilogue(x @ weight.T) for many tokens by mma.sp: the problem as the kernel receives it.
#pragma once

#include "secateur/common.h"
#include "secateur/fragment24.h"
#include "secateur/output.h"
#include "secateur/ring.h"
#include "secateur/tile_schedule.h"
#include "secateur/x_tile.h"

namespace secateur::tiles {

constexpr int min_stages = 2;
constexpr int max_stages = 8;

struct Problem {
  const void* x;          // [tokens, columns], rows that start at multiples of 16 bytes
  const uint8_t* weight;  // fragment order, 16-byte aligned
  float* workspace;       // schedule.slots() * Shape::slot_floats, 16-byte aligned
  uint32_t* counters;     // schedule.counters() * Shape::warps, zero before and after
  int64_t x_stride;       // elements from row to row
  Output output;
  int columns;  // of x
  int stages;
  TileSchedule schedule;
};

// A tile of y is that of a thread block: RowWarps x TokenWarps warps, each with 64 rows and
// TokenTiles groups of eight tokens. `blocks_per_sm` thread blocks have to fit into the registers
// of a multiprocessor.
template <int RowWarps_, int TokenWarps_, int TokenTiles_, int BlocksPerSm_>
struct Shape {
  static constexpr int row_warps = RowWarps_;
  static constexpr int token_warps = TokenWarps_;
  static constexpr int row_tiles = fragment24::tiles_per_unit;
  static constexpr int token_tiles = TokenTiles_;
  static constexpr int blocks_per_sm = BlocksPerSm_;

  static constexpr int warps = row_warps * token_warps;
  static constexpr int threads = warps * warp_lanes;
  static constexpr int panels = row_warps;  // of 64 rows
  static constexpr int warp_tokens = token_tiles * x_tile::tile_tokens;
  static constexpr int rows = panels * fragment24::unit_rows;
  static constexpr int tokens = token_warps * warp_tokens;
  static_assert(tokens % x_tile::tile_tokens == 0, "whole token tiles");

  // A stage holds 64 columns: the weights of the tile's rows, then x for its tokens.
  static constexpr int weight_bytes = panels * fragment24::unit_bytes;
  static constexpr int stage_bytes = weight_bytes + tokens * x_tile::token_bytes;
  static_assert(weight_bytes % 128 == 0, "the swizzle of x is over multiples of 128 bytes");

  // A slot of the workspace holds the accumulators of all warps.
  static constexpr int64_t slot_floats = int64_t{rows} * tokens;
};

// Behind the ring of stages: a full and an empty barrier for each.
SECATEUR_INLINE constexpr int shared_bytes(int stage_bytes, int stages) {
  return stages * (stage_bytes + 16);
}

template <typename Shape>
struct Ring : RingPlace {
  SECATEUR_INLINE uint32_t weights() const { return base + stage * Shape::stage_bytes; }
  SECATEUR_INLINE uint32_t x() const { return weights() + Shape::weight_bytes; }
  SECATEUR_INLINE uint32_t full() const { return barriers() + 8 * stage; }
  SECATEUR_INLINE uint32_t empty() const { return barriers() + 8 * (stages + stage); }

  // Where the stage is filled that was used last: all stages but one are ahead.
  SECATEUR_INLINE Ring to_fill() const {
    if (stage == 0) return {{base, stages, stages - 1, phase}};
    return {{base, stages, stage - 1, phase ^ 1}};
  }

 private:
  SECATEUR_INLINE uint32_t barriers() const { return base + stages * Shape::stage_bytes; }
};

}  // namespace secateur::tiles
