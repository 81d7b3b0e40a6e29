// Who does what: the units (row block, step of 64 columns), in this order, are divided into
// contiguous ranges of equal length, one a thread block. Whole multiples of the row blocks give the
// plain split of K; anything else lets a range cross from one row block into the next. A row block
// that several thread blocks share is summed by the last of them to finish, in slot order.
#pragma once

#include "secateur/common.h"

namespace secateur {

// Part of one row block: steps [first, end) of 64 columns.
struct Segment {
  int row_block;
  int first;
  int end;
};

struct Schedule {
  int row_blocks;
  int steps;
  int blocks;  // thread blocks, at most units()

  // Nothing below leaves 32 bits: divisions of 64 bits cost registers.
  static SECATEUR_INLINE constexpr bool fits(int64_t row_blocks, int64_t steps, int64_t blocks) {
    const int64_t units = row_blocks * steps;
    return units < INT32_MAX && blocks >= 1 && blocks <= units &&
           blocks <= INT32_MAX / (units + 1);
  }

  SECATEUR_INLINE constexpr int units() const { return row_blocks * steps; }

  // First unit of a thread block; its last is before the first of the next.
  SECATEUR_INLINE constexpr int first_unit(int block) const { return block * units() / blocks; }

  // The thread block whose range holds a unit: the largest with first_unit(block) <= unit.
  SECATEUR_INLINE constexpr int block_of(int unit) const {
    return ((unit + 1) * blocks - 1) / units();
  }

  // The segment that starts at a unit, for a range that ends at `end`.
  SECATEUR_INLINE constexpr Segment segment(int unit, int end) const {
    const int row_block = unit / steps, row_end = (row_block + 1) * steps;
    const int first = unit - row_block * steps;
    return {row_block, first, first + (end < row_end ? end : row_end) - unit};
  }

  SECATEUR_INLINE constexpr bool whole(const Segment& segment) const {
    return segment.first == 0 && segment.end == steps;
  }

  // The thread blocks that share a row block are neighbours: [first, last].
  SECATEUR_INLINE constexpr int first_contributor(int row_block) const {
    return block_of(row_block * steps);
  }
  SECATEUR_INLINE constexpr int last_contributor(int row_block) const {
    return block_of((row_block + 1) * steps - 1);
  }

  // Only the first and the last segment of a range can be partial: two slots a thread block, or one
  // where ranges never cross a row block, or none where they are whole row blocks.
  SECATEUR_INLINE constexpr int slots_per_block() const { return blocks % row_blocks == 0 ? 1 : 2; }
  SECATEUR_INLINE constexpr int64_t slots() const {
    return row_blocks % blocks == 0 ? 0 : static_cast<int64_t>(blocks) * slots_per_block();
  }
  SECATEUR_INLINE constexpr int slot(int block, int row_block) const {
    // Whether the range begins before the row block: first_unit(block) < row_block * steps.
    const bool later = block * units() < row_block * steps * blocks;
    return block * slots_per_block() + (later ? 1 : 0);
  }
};

}  // namespace secateur
