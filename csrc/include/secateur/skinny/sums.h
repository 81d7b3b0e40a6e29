// What a warp sums up: its rows, all tokens.
#pragma once

#include "secateur/accumulator.h"
#include "secateur/device.h"

namespace secateur::skinny {

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

}  // namespace secateur::skinny
