// Who does what where y is cut into tiles: row blocks of the weight x blocks of tokens.
//
// Tiles are numbered in groups of `group` row blocks, row blocks first: tiles with neighbouring
// numbers are computed at about the same time, and share rows and tokens in the L2 cache. The first
// `waves` times as many tiles as there are thread blocks are given out whole, in turn. What is left
// is a list of units (tile, step of 64 columns) that is divided into contiguous ranges of equal
// length, one a thread block: no waves at all split K for few tiles, ceil(tiles / blocks) waves
// split nothing. A tile that several thread blocks share is summed by the last of them to finish,
// in slot order. Where clusters work on a tile together, "thread block" means cluster.
#pragma once

#include "secateur/common.h"

namespace secateur {

// Which part of y a tile is.
struct TilePlace {
  int row_block;
  int token_block;
};

// Part of one tile: steps [first, end) of 64 columns.
struct TileSegment {
  int tile;
  int first;
  int end;
};

struct TileSchedule {
  int row_blocks;
  int token_blocks;
  int steps;
  int blocks;  // thread blocks
  int waves;
  int group;  // row blocks

  // Units and turns stay within 32 bits.
  static SECATEUR_INLINE constexpr bool fits(int64_t row_blocks, int64_t token_blocks,
                                             int64_t steps, int64_t blocks, int64_t waves,
                                             int64_t group) {
    if (blocks < 1 || waves < 0 || waves > INT32_MAX || group < 1 || group > INT32_MAX) {
      return false;
    }
    if (row_blocks > INT32_MAX / token_blocks) return false;
    const int64_t tiles = row_blocks * token_blocks;
    return tiles <= INT32_MAX / steps && blocks <= tiles * steps &&
           waves <= ceil_div(tiles, blocks) && blocks <= INT32_MAX / (waves + 1);
  }

  SECATEUR_INLINE constexpr int tiles() const { return row_blocks * token_blocks; }

  SECATEUR_INLINE constexpr TilePlace place(int tile) const {
    const int group_tiles = group < row_blocks ? group * token_blocks : tiles();
    const int first_row = tile / group_tiles * group, within = tile % group_tiles;
    const int rows = row_blocks - first_row < group ? row_blocks - first_row : group;
    return {first_row + within % rows, within / rows};
  }

  // ---- the part that is given out in units, counted from its first tile ----

  SECATEUR_INLINE constexpr int whole_tiles() const {
    const int whole = waves * blocks;
    return whole < tiles() ? whole : tiles();
  }
  SECATEUR_INLINE constexpr int split_tiles() const { return tiles() - whole_tiles(); }
  SECATEUR_INLINE constexpr int split_units() const { return split_tiles() * steps; }

  // The thread blocks that get some of it: the first ones.
  SECATEUR_INLINE constexpr int sharers() const {
    return blocks < split_units() ? blocks : split_units();
  }

  // First unit of a thread block; its last is before the first of the next.
  SECATEUR_INLINE constexpr int first_unit(int block) const {
    if (block >= sharers()) return split_units();
    return static_cast<int>(static_cast<int64_t>(block) * split_units() / sharers());
  }

  // The thread block whose range holds a unit: the largest with first_unit(block) <= unit.
  SECATEUR_INLINE constexpr int block_of(int unit) const {
    return static_cast<int>(((unit + int64_t{1}) * sharers() - 1) / split_units());
  }

  SECATEUR_INLINE constexpr bool whole(const TileSegment& segment) const {
    return segment.first == 0 && segment.end == steps;
  }

  // The thread blocks that share a tile are neighbours: [first, last].
  SECATEUR_INLINE constexpr int first_contributor(int tile) const {
    return block_of((tile - whole_tiles()) * steps);
  }
  SECATEUR_INLINE constexpr int last_contributor(int tile) const {
    return block_of((tile - whole_tiles() + 1) * steps - 1);
  }

  // Counters are for tiles that several thread blocks may share: how many, and a tile's.
  SECATEUR_INLINE constexpr int counters() const { return shares() ? split_tiles() : 0; }
  SECATEUR_INLINE constexpr int counter(int tile) const { return tile - whole_tiles(); }

  // Only the first and the last segment of a range can be partial: two slots a thread block, or one
  // where ranges never cross from tile to tile, or none where they are whole tiles.
  SECATEUR_INLINE constexpr int slots_per_block() const {
    return split_tiles() > 0 && sharers() % split_tiles() == 0 ? 1 : 2;
  }
  SECATEUR_INLINE constexpr bool shares() const {
    return split_tiles() > 0 && split_tiles() % sharers() != 0;
  }
  SECATEUR_INLINE constexpr int64_t slots() const {
    return shares() ? static_cast<int64_t>(sharers()) * slots_per_block() : 0;
  }
  // `later`: the thread block's range began in an earlier tile. Of the contributors of a tile that
  // can only be the first.
  SECATEUR_INLINE constexpr bool later(int block, int tile) const {
    return first_unit(block) < (tile - whole_tiles()) * steps;
  }
  SECATEUR_INLINE constexpr int64_t slot(int block, bool later) const {
    return slot(block, later, slots_per_block());
  }
  // Where slots_per_block(), a division, is known.
  static SECATEUR_INLINE constexpr int64_t slot(int block, bool later, int per_block) {
    return static_cast<int64_t>(block) * per_block + (later ? 1 : 0);
  }
};

// A thread block's segments, one after the other.
struct TileWalk {
  const TileSchedule& schedule;
  int block;
  int turn = 0;  // of the waves
  int unit;
  int end;

  SECATEUR_INLINE TileWalk(const TileSchedule& schedule, int block)
      : schedule(schedule),
        block(block),
        unit(schedule.first_unit(block)),
        end(schedule.first_unit(block + 1)) {}

  // False at the end of the thread block's work.
  SECATEUR_INLINE bool next(TileSegment& segment) {
    if (turn < schedule.waves) {
      segment = {turn++ * schedule.blocks + block, 0, schedule.steps};
      if (segment.tile < schedule.tiles()) return true;
      turn = schedule.waves;  // the last wave is not full, and nothing is left to split
    }
    if (unit >= end) return false;
    const int tile = unit / schedule.steps, first = unit % schedule.steps;
    const int left = end - unit, here = schedule.steps - first;
    const int taken = left < here ? left : here;
    segment = {schedule.whole_tiles() + tile, first, first + taken};
    unit += taken;
    return true;
  }
};

}  // namespace secateur
