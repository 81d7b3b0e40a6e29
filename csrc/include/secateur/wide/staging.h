// Where a warp turns its sums: it puts those of 32 tokens of a sub-tile into shared memory of its
// own, token by token, and reads them again with whole rows of y in mind. Far less code than
// exchanging registers for 256 tokens, and no other warp is waited for.
#pragma once

#include "secateur/accumulator.h"
#include "secateur/fragment24.h"

namespace secateur::wide::staging {

constexpr int tokens = 32;
// Floats from token to token: 16 rows and a gap, so that stores touch every bank once.
constexpr int stride = fragment24::tile_rows + 4;
constexpr int bytes = tokens * stride * 4;  // of a warp
static_assert(2 * stride % 32 == 8, "tokens two apart lie eight banks apart");
static_assert(stride * 4 % 16 == 0 && bytes % 16 == 0, "read by 16 bytes");

// Two neighbouring lanes read the halves of a token: which one, so that eight neighbours, which
// read 16 bytes each at a time, touch every bank once. The order of 16 tokens with two bits of
// their numbers exchanged; those that follow lie the same.
SECATEUR_INLINE constexpr int token_of_pair(int pair) {
  return (pair & ~6) | (pair & 2) << 1 | (pair & 4) >> 1;
}

SECATEUR_INLINE constexpr int offset(int token, int row) { return (token * stride + row) * 4; }

// Of an accumulator of the first token tile; the next ones follow.
SECATEUR_INLINE constexpr int item_offset(int lane, int item) {
  return offset(accumulator::token(lane, item), accumulator::row(lane, item));
}
constexpr int token_tile_bytes = accumulator::tile_tokens * stride * 4;

}  // namespace secateur::wide::staging
