// y = epilogue(x @ weight.T) for few tokens: the problem as the kernel receives it.
#pragma once

#include "secateur/accumulator.h"
#include "secateur/common.h"
#include "secateur/fragment24.h"
#include "secateur/inbox.h"
#include "secateur/output.h"
#include "secateur/ring.h"
#include "secateur/schedule.h"
#include "secateur/x_tile.h"

namespace secateur::skinny {

constexpr int max_tokens = 64;

// Warps of a thread block that multiply; one more copies. Fewer where sums take most registers.
SECATEUR_INLINE constexpr int max_warps(int row_tiles, int token_tiles) {
  return row_tiles * token_tiles > 16 ? 4 : 8;
}

constexpr int min_stages = 2;
constexpr int max_stages = 16;

struct Problem {
  const void* x;           // [tokens, columns], the last dimension contiguous
  const uint8_t* weight;   // fragment order, 16-byte aligned
  float* workspace;        // schedule.slots() * slot_floats, 16-byte aligned
  uint32_t* counters;      // row blocks * warps, zero before and after
  int64_t x_stride;        // elements from row to row
  Output output;
  int columns;     // of x
  bool x_aligned;  // rows of x start at multiples of 16 bytes
  int warps;       // that multiply
  int stages;
  int cluster;     // thread blocks; above 1 each cluster owns one row block
  int lead;        // steps left to ask for when the next kernel may start; 0: from the first on
  int ahead;       // steps behind those in the ring whose weights are asked for into the L2 cache
  // What follows from the shape and the configuration, here because the kernel reads it from
  // constant memory without a register.
  Schedule schedule;
  int block_panels;  // row panels of 64 rows that a thread block owns
  int stage_bytes;
};

// A warp owns RowTiles sub-tiles of 16 rows and TokenTiles groups of eight tokens.
template <int RowTiles_, int TokenTiles_>
struct Shape {
  static constexpr int row_tiles = RowTiles_;
  static constexpr int token_tiles = TokenTiles_;
  static_assert(fragment24::tiles_per_unit % row_tiles == 0, "a warp stays within one unit");
  static_assert(token_tiles * x_tile::tile_tokens <= max_tokens, "tokens");
};

// Row panels of 64 rows that a thread block owns.
SECATEUR_INLINE constexpr int block_panels(int warps, int row_tiles) {
  return warps * row_tiles / fragment24::tiles_per_unit;
}

SECATEUR_INLINE constexpr Schedule schedule(int rows, int columns, int warps, int row_tiles,
                                            int blocks) {
  const int panels = block_panels(warps, row_tiles);
  return {static_cast<int>(ceil_div(fragment24::panels(rows), panels)),
          fragment24::steps(columns), blocks};
}

// A stage holds 64 columns: the weights of the thread block's rows, then x for all tokens.
SECATEUR_INLINE constexpr int stage_bytes(int warps, int row_tiles, int token_tiles) {
  return block_panels(warps, row_tiles) * fragment24::unit_bytes + x_tile::bytes(token_tiles);
}

// Sums of a cluster are handed over in items of 16 rows and one or two token tiles. Behind the ring
// there are a barrier for that, and the inbox.
SECATEUR_INLINE constexpr int item_tiles(int token_tiles) { return token_tiles < 2 ? 1 : 2; }
SECATEUR_INLINE constexpr Inbox inbox(int warps, int row_tiles, int token_tiles, int cluster) {
  const int tiles = item_tiles(token_tiles);
  return {warps * row_tiles * (token_tiles / tiles), cluster, tiles * accumulator::tile_bytes};
}
constexpr int exchange_barrier_bytes = 16;
SECATEUR_INLINE constexpr int exchange_bytes(int warps, int row_tiles, int token_tiles,
                                             int cluster) {
  if (cluster == 1) return 0;
  return exchange_barrier_bytes + inbox(warps, row_tiles, token_tiles, cluster).bytes();
}

// Behind the ring of stages: a full and an empty barrier for each, and what a cluster exchanges.
SECATEUR_INLINE constexpr int shared_bytes(int warps, int row_tiles, int token_tiles, int stages,
                                           int cluster) {
  return stages * (stage_bytes(warps, row_tiles, token_tiles) + 16) +
         exchange_bytes(warps, row_tiles, token_tiles, cluster);
}

// A slot of the workspace holds the accumulators of a thread block, warp after warp.
SECATEUR_INLINE constexpr int64_t slot_floats(int warps, int row_tiles, int token_tiles) {
  return static_cast<int64_t>(warps) * row_tiles * token_tiles * accumulator::tile_bytes / 4;
}

// The first sub-tile of a warp, counted over the whole weight.
SECATEUR_INLINE constexpr int first_tile(int row_block, int warps, int warp, int row_tiles) {
  return (row_block * warps + warp) * row_tiles;
}

struct Ring : RingPlace {
  const int& stage_size;

  SECATEUR_INLINE uint32_t weights() const { return base + stage * stage_size; }
  SECATEUR_INLINE uint32_t barriers() const { return base + stages * stage_size; }
  SECATEUR_INLINE uint32_t full(int i) const { return barriers() + 8 * i; }
  SECATEUR_INLINE uint32_t empty(int i) const { return barriers() + 8 * (stages + i); }
  SECATEUR_INLINE uint32_t exchange() const { return empty(stages); }
};

}  // namespace secateur::skinny
