// What a warp sums up: accumulators of its rows and tokens.
#pragma once

#include "secateur/accumulator.h"
#include "secateur/device.h"

namespace secateur {

template <int RowTiles, int TokenTiles>
using WarpSums = float[RowTiles][TokenTiles][accumulator::items];

// Of kernels whose shape has these names.
template <typename Shape>
using Sums = WarpSums<Shape::row_tiles, Shape::token_tiles>;

template <int RowTiles, int TokenTiles>
SECATEUR_DEVICE void clear_sums(WarpSums<RowTiles, TokenTiles>& sums) {
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
    for (int n = 0; n < TokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < accumulator::items; ++i) sums[r][n][i] = 0.0f;
    }
  }
}

// An accumulator on its way through shared memory.
SECATEUR_DEVICE Words4 words_of(const float (&sums)[accumulator::items]) {
  Words4 words;
#pragma unroll
  for (int i = 0; i < accumulator::items; ++i) words.word[i] = device::as_bits(sums[i]);
  return words;
}

}  // namespace secateur
