// Packed 2:4 to dense, bits untouched: a warp a sub-tile of 16 rows x 64 columns.
#pragma once

#include "secateur/device.h"
#include "secateur/fragment24.h"

namespace secateur::unpack24 {

struct Problem {
  const uint8_t* weight;  // fragment order
  uint16_t* dense;        // [rows, columns]; 16-byte aligned if columns % 8 == 0, else 8
  int rows;
  int columns;  // divisible by 4
  bool gate_up;
};

SECATEUR_INLINE constexpr int64_t tiles(const Problem& problem) {
  return ceil_div(problem.rows, fragment24::tile_rows) * fragment24::steps(problem.columns);
}

// Writes eight columns, or those of them that exist. Columns come in fours.
SECATEUR_DEVICE void write_eight(const Problem& problem, int64_t row, int column, uint64_t first,
                                 uint64_t second) {
  if (row >= problem.rows || column >= problem.columns) return;
  uint16_t* target = problem.dense + row * problem.columns + column;
  if (problem.columns % 8 == 0) {
    device::store(target, Words4{{static_cast<uint32_t>(first), static_cast<uint32_t>(first >> 32),
                                  static_cast<uint32_t>(second),
                                  static_cast<uint32_t>(second >> 32)}});
    return;
  }
  device::store(target, first);
  if (column + 4 < problem.columns) device::store(target + 4, second);
}

// The work of one warp: sub-tile `index`, neighbouring steps of a row of sub-tiles first.
SECATEUR_DEVICE void unpack_tile(const Problem& problem, int64_t index, int lane) {
  using namespace fragment24;
  const int64_t num_steps = steps(problem.columns);
  const int64_t tile = index / num_steps, step = index - tile * num_steps;
  const uint8_t* source = problem.weight + unit_offset(tile / tiles_per_unit, step, num_steps) +
                          tile % tiles_per_unit * tile_bytes;
  const uint32_t metadata = device::load<uint32_t>(source + metadata_offset(lane));
  const bool odd = lane % 2 != 0;
  const int64_t row = logical_row(tile, lane / 4 + (odd ? 8 : 0), problem.rows, problem.gate_up);
#pragma unroll
  for (int fragment = 0; fragment < 2; ++fragment) {
    const Words4 values = device::load<Words4>(source + value_offset(fragment, lane));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t word = device::shuffle(metadata, metadata_lane(lane, fragment, half));
      const uint64_t upper =
          expand_group(values.word[value_register(0, half)], nibble(word, lane, 0));
      const uint64_t lower =
          expand_group(values.word[value_register(1, half)], nibble(word, lane, 1));
      // Neighbouring lanes have neighbouring groups of both rows: each takes one row of the two.
      const uint64_t other = device::shuffle(odd ? upper : lower, lane ^ 1);
      const int column =
          static_cast<int>(step) * unit_columns + group_column(lane & ~1, fragment, half);
      write_eight(problem, row, column, odd ? other : upper, odd ? lower : other);
    }
  }
}

}  // namespace secateur::unpack24
