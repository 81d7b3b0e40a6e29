// A tile of x in shared memory: 64 columns of up to 64 tokens, 128 bytes a token, in eight chunks
// of 16 bytes. Chunk c of token m lies at c ^ (m % 8), so that ldmatrix, which reads one chunk of
// eight neighbouring tokens at a time, touches every bank once. The order is that of the
// tensor memory accelerator's 128-byte swizzle.
#pragma once

#include "secateur/common.h"

namespace secateur::x_tile {

constexpr int columns = 64;
constexpr int token_bytes = columns * 2;
constexpr int chunk_bytes = 16;
constexpr int chunk_columns = chunk_bytes / 2;
constexpr int chunks = token_bytes / chunk_bytes;
constexpr int tile_tokens = 8;  // n of the instruction

static_assert(chunks == 8, "the swizzle is over eight chunks");

SECATEUR_INLINE constexpr int bytes(int token_tiles) {
  return token_tiles * tile_tokens * token_bytes;
}

SECATEUR_INLINE constexpr int chunk_offset(int token, int chunk) {
  return token * token_bytes + ((chunk ^ (token % 8)) * chunk_bytes);
}

// What a lane passes to ldmatrix.x4 to get the B operand of the first token tile and fragment 0 (32
// columns): lanes 8 * i to 8 * i + 7 name the eight tokens of matrix i, which is chunk i.
SECATEUR_INLINE constexpr int operand_offset(int lane) {
  return chunk_offset(lane % 8, lane / 8);
}

// Fragment 1 is chunks 4 to 7: in a tile that is 128-byte aligned one bit of the address differs.
constexpr uint32_t second_fragment = 4 * chunk_bytes;
// The following token tiles lie this far apart.
constexpr int token_tile_bytes = tile_tokens * token_bytes;

// How many of a chunk's 16 bytes exist in a row of x; what is beyond counts as zero.
SECATEUR_INLINE constexpr int valid_bytes(int column, int columns_of_x) {
  const int left = 2 * (columns_of_x - column);
  return left < 0 ? 0 : (left < chunk_bytes ? left : chunk_bytes);
}

}  // namespace secateur::x_tile
