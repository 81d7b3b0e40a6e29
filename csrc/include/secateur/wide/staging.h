// Where a warp turns its results: it puts those of some tokens of a sub-tile, rounded, into shared
// memory of its own, and takes them out again as rows of y. Both go in rounds: one moves sixteen
// bytes a lane, which are eight columns of a token.
#pragma once

#include "secateur/common.h"
#include "secateur/fragment24.h"

namespace secateur::wide::staging {

constexpr int round_bytes = warp_lanes * 16;
constexpr int most_rounds = 4;  // that are staged together
constexpr int bytes = most_rounds * round_bytes;  // of a warp

// How many of `all` rounds are staged together: equal parts.
SECATEUR_INLINE constexpr int rounds_together(int all) {
  int rounds = all < most_rounds ? all : most_rounds;
  while (all % rounds != 0) --rounds;
  return rounds;
}

// A sub-tile has eight columns where gate and up have become one, else twice as many. Neighbouring
// lanes take the halves of a token.
SECATEUR_INLINE constexpr int halves(bool gated) { return gated ? 1 : 2; }
SECATEUR_INLINE constexpr int round_tokens(bool gated) { return warp_lanes / halves(gated); }
SECATEUR_INLINE constexpr int token(bool gated, int lane) { return lane / halves(gated); }
SECATEUR_INLINE constexpr int half(bool gated, int lane) { return lane % halves(gated); }

// Within the bytes of a round: where a lane finds what it takes out. Eight lanes are served at a
// time, and touch every bank once.
SECATEUR_INLINE constexpr int row_offset(bool gated, int lane) {
  return 16 * (gated ? lane : lane ^ (lane / 8 % 2));
}

// Where a lane has a row of a matrix put, eight columns of a token: lane 8 * i + j row j of matrix
// i. The matrices are two halves of eight tokens, and the same of the next eight; or four times
// eight tokens. One matrix is put at a time, and touches every bank once: for that, the halves
// change places with every fourth token.
SECATEUR_INLINE constexpr int matrix_row_offset(bool gated, int lane) {
  const int first = lane / 16 * 16, row = lane % 8, half = lane / 8 % 2;
  return 16 * (gated ? lane : first + 2 * row + (half ^ row / 4));
}

}  // namespace secateur::wide::staging
