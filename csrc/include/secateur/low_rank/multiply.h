// The products of one stage: rows of weights are rows of the instruction, tokens its columns.
#pragma once

#include "secateur/device/mma.h"
#include "secateur/low_rank/fetch.h"
#include "secateur/warp_sums.h"

namespace secateur::low_rank {

constexpr int block_columns = 32;  // two instructions of 16
constexpr int blocks_per_chunk = chunk_columns / block_columns;

// How many blocks are unrolled: with many sums the loads of several do not fit into registers.
template <typename Shape, int Tiles = Shape::row_tiles * Shape::token_tiles>
constexpr int unrolled_blocks = Tiles <= 2 ? blocks_per_chunk : 1;

// Blocks of 32 columns of a chunk that are not all beyond the matrix.
SECATEUR_INLINE constexpr int blocks_of(int chunk, int columns) {
  const int left = static_cast<int>(ceil_div(columns - chunk * chunk_columns, block_columns));
  return left < blocks_per_chunk ? left : blocks_per_chunk;
}

// What a lane passes to ldmatrix.x4 to get the operand A of the first 16 columns of a tile: lanes 0
// to 15 name the 16 rows of piece 0, lanes 16 to 31 those of piece 1. Rows lie at multiples of 256
// bytes, so that other columns differ in bits of the address.
SECATEUR_INLINE constexpr int weights_offset(int lane) {
  return piece_offset(lane % 16, lane / 16);
}
SECATEUR_INLINE constexpr uint32_t at_columns(uint32_t address, int columns) {
  return address ^ static_cast<uint32_t>(2 * columns);
}

// 16 rows x 32 columns of weights: the operands of two instructions.
struct Weights {
  Words4 half[2];
};

SECATEUR_DEVICE Weights load_weights(uint32_t tile, int block) {
  const int column = block * block_columns;
  return {{device::load_matrices(at_columns(tile, column)),
           device::load_matrices(at_columns(tile, column + 16))}};
}

// The token that stands for column `column` of token tile n: tokens that do not exist read
// another's.
SECATEUR_INLINE constexpr int token_of(int column, int n, int tokens) {
  const int token = n * accumulator::tile_tokens + column;
  return token < tokens ? token : tokens - 1;
}

// A stage of down and x.
template <typename Value, typename Shape>
SECATEUR_DEVICE void multiply_down(Sums<Shape>& sums, uint32_t weights, uint32_t x, int blocks,
                                   int tokens, int lane) {
  const uint32_t tile = weights + weights_offset(lane);
  // Lanes 8 * i to 8 * i + 7 name eight tokens of piece i: four pieces are 32 columns.
  uint32_t row[Shape::token_tiles];
#pragma unroll
  for (int n = 0; n < Shape::token_tiles; ++n) {
    row[n] = x + piece_offset(token_of(lane % 8, n, tokens), lane / 8);
  }
#pragma unroll(unrolled_blocks<Shape>)
  for (int block = 0; block < blocks_per_chunk; ++block) {
    if (block >= blocks) break;
    Weights w[Shape::row_tiles];
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) w[r] = load_weights(tile + r * tile_bytes, block);
#pragma unroll
    for (int n = 0; n < Shape::token_tiles; ++n) {
      const Words4 b = device::load_matrices(at_columns(row[n], block * block_columns));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int r = 0; r < Shape::row_tiles; ++r) {
          device::multiply_dense<Value>(sums[r][n], w[r].half[half], b.word[2 * half],
                                        b.word[2 * half + 1]);
        }
      }
    }
  }
}

}  // namespace secateur::low_rank
