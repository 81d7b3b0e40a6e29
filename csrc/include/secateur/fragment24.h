// Fragment order: where the bytes of a packed 2:4 weight lie. The specification, with names for
// lanes (4 * q + t) and halves, is kernels/secateur_kernels/layouts/fragment24.py.
#pragma once

#include "secateur/common.h"

namespace secateur::fragment24 {

constexpr int unit_rows = 64;
constexpr int unit_columns = 64;
constexpr int tile_rows = 16;  // a sub-tile: 16 rows x 64 columns
constexpr int tiles_per_unit = 4;
constexpr int fragment_columns = 32;
constexpr int fragment_bytes = 512;  // values of 16 x 32
constexpr int value_bytes = 1024;
constexpr int metadata_bytes = 128;
constexpr int tile_bytes = value_bytes + metadata_bytes;
constexpr int unit_bytes = tiles_per_unit * tile_bytes;

static_assert(fragment_bytes == warp_lanes * sizeof(Words4), "a fragment is 16 bytes a lane");
static_assert(2 * fragment_bytes == value_bytes, "two fragments a sub-tile");
static_assert(value_bytes == tile_rows * unit_columns / 2 * 2, "half the columns, two bytes each");
static_assert(metadata_bytes == warp_lanes * sizeof(uint32_t), "a metadata word a lane");
static_assert(metadata_bytes == tile_rows * unit_columns / 4 / 2, "half a byte a group of four");
static_assert(unit_bytes == 4608, "the layout of version 1");
static_assert(unit_bytes % 16 == 0, "bulk copies move 16 bytes");

SECATEUR_INLINE constexpr int steps(int columns) {
  return static_cast<int>(ceil_div(columns, unit_columns));
}

SECATEUR_INLINE constexpr int panels(int rows) {
  return static_cast<int>(ceil_div(rows, unit_rows));
}

// Byte offset of the unit of a row panel and a step of 64 columns.
SECATEUR_INLINE constexpr int64_t unit_offset(int64_t panel, int64_t step, int64_t steps) {
  return (panel * steps + step) * unit_bytes;
}

// Within a sub-tile: the 16 bytes of a lane in fragment 0 or 1, and the lane's metadata word.
SECATEUR_INLINE constexpr int value_offset(int fragment, int lane) {
  return fragment * fragment_bytes + lane * static_cast<int>(sizeof(Words4));
}

SECATEUR_INLINE constexpr int metadata_offset(int lane) {
  return value_bytes + lane * static_cast<int>(sizeof(uint32_t));
}

// The register of a lane that holds row q (half 0) or q + 8 (half 1) of a 16-column half.
SECATEUR_INLINE constexpr int value_register(int row_half, int column_half) {
  return row_half + 2 * column_half;
}

// The lane whose metadata word is for the row of `lane`, in a fragment and a 16-column half.
SECATEUR_INLINE constexpr int metadata_lane(int lane, int fragment, int column_half) {
  return lane / 4 * 4 + 2 * fragment + column_half;
}

// The index pair of a lane's group of four in that word.
SECATEUR_INLINE constexpr uint32_t nibble(uint32_t word, int lane, int row_half) {
  return (word >> (16 * row_half + 4 * (lane % 4))) & 15u;
}

// First of the four columns, within a sub-tile, of a lane's group.
SECATEUR_INLINE constexpr int group_column(int lane, int fragment, int column_half) {
  return fragment_columns * fragment + 16 * column_half + 4 * (lane % 4);
}

// Four columns from two kept values and their index pair; the lowest 16 bits are the first column.
SECATEUR_INLINE constexpr uint64_t expand_group(uint32_t values, uint32_t nibble) {
  return (static_cast<uint64_t>(values & 0xFFFFu) << (16 * (nibble & 3u))) |
         (static_cast<uint64_t>(values >> 16) << (16 * (nibble >> 2)));
}

// The logical row of a row of a sub-tile (counted over the whole weight; not one of padding only).
// In row order gate_up a sub-tile holds eight gate rows and the eight up rows of the same features.
SECATEUR_INLINE constexpr int64_t logical_row(int64_t tile, int row, int64_t rows, bool gate_up) {
  if (!gate_up) return tile * tile_rows + row;
  return row < 8 ? tile * 8 + row : rows / 2 + tile * 8 + (row - 8);
}

}  // namespace secateur::fragment24
