// The products of one stage. Which column of a stage is which k of an instruction is free as long as
// both operands agree: lane 4 * q + t takes the eight neighbouring columns 8 * t to 8 * t + 7 of every
// 32, 16 bytes of 16-bit values, so that row-major memory is read without ldmatrix.
#pragma once

#include "secateur/accumulator.h"
#include "secateur/device/mma.h"
#include "secateur/low_rank/fetch.h"

namespace secateur::low_rank {

constexpr int block_columns = 32;  // four lanes of eight
constexpr int blocks_per_chunk = chunk_columns / block_columns;

template <typename Shape>
using Sums = float[Shape::row_tiles][Shape::token_tiles][accumulator::items];

template <typename Shape>
SECATEUR_DEVICE void clear(Sums<Shape>& sums) {
#pragma unroll
  for (int r = 0; r < Shape::row_tiles; ++r) {
#pragma unroll
    for (int n = 0; n < Shape::token_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < accumulator::items; ++i) sums[r][n][i] = 0.0f;
    }
  }
}

// Blocks of 32 columns of a chunk that are not all beyond the matrix.
SECATEUR_INLINE constexpr int blocks_of(int chunk, int columns) {
  const int left = static_cast<int>(ceil_div(columns - chunk * chunk_columns, block_columns));
  return left < blocks_per_chunk ? left : blocks_per_chunk;
}

// Where a lane reads its 16 bytes of row q of a tile, block 0. Block j is 64 * j further, but for the
// exchange of halves, which one exclusive or of the address covers: rows lie at multiples of 256.
SECATEUR_INLINE constexpr int operand_offset(int row, int lane) {
  return piece_offset(row, lane % 4);
}
SECATEUR_INLINE constexpr uint32_t at_block(uint32_t address, int block) {
  return address ^ (64u * block);
}

// Two rows of weights, q and q + 8, at eight columns.
struct Weights {
  Words4 upper;
  Words4 lower;
};

SECATEUR_DEVICE Weights load_weights(uint32_t tile, int block) {
  const uint32_t address = at_block(tile, block);
  return {device::load_shared16(address), device::load_shared16(address + 8 * row_bytes)};
}

// Four of the eight columns as the operand of m16n8k16.
SECATEUR_DEVICE Words4 half_of(const Weights& w, int half) {
  return {{w.upper.word[2 * half], w.lower.word[2 * half], w.upper.word[2 * half + 1],
           w.lower.word[2 * half + 1]}};
}

// The row of a token tile that a lane reads: tokens that do not exist read another's.
SECATEUR_INLINE constexpr int token_of(int lane, int n, int tokens) {
  const int token = n * accumulator::tile_tokens + lane / 4;
  return token < tokens ? token : tokens - 1;
}

// A stage of down and x. The next operand is loaded before the current one is used.
template <typename Value, typename Shape>
SECATEUR_DEVICE void multiply_down(Sums<Shape>& sums, uint32_t weights, uint32_t x, int blocks,
                                   int tokens, int lane) {
  const uint32_t tile = weights + operand_offset(lane / 4, lane);
  uint32_t row[Shape::token_tiles];
#pragma unroll
  for (int n = 0; n < Shape::token_tiles; ++n) {
    row[n] = x + operand_offset(token_of(lane, n, tokens), lane);
  }
#pragma unroll
  for (int block = 0; block < blocks_per_chunk; ++block) {
    if (block >= blocks) break;
    Weights w[Shape::row_tiles];
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) w[r] = load_weights(tile + r * tile_bytes, block);
#pragma unroll
    for (int n = 0; n < Shape::token_tiles; ++n) {
      const Words4 b = device::load_shared16(at_block(row[n], block));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int r = 0; r < Shape::row_tiles; ++r) {
          device::multiply_dense<Value>(sums[r][n], half_of(w[r], half), b.word[2 * half],
                                        b.word[2 * half + 1]);
        }
      }
    }
  }
}

}  // namespace secateur::low_rank
