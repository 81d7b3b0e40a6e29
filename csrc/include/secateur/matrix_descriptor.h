// How a warpgroup's product is told where its tokens lie in shared memory: a tile as x_tile.h has
// it, 128 bytes a token in the order of the 128-byte swizzle, the first token at a multiple of 1024.
#pragma once

#include "secateur/common.h"

namespace secateur::matrix_descriptor {

constexpr int swizzle_bytes = 1024;  // eight tokens: the order repeats

// In units of 16 bytes: the start, and the distance between groups of eight tokens. The leading
// distance is not used by this order. The top bits name the swizzle.
SECATEUR_INLINE constexpr uint64_t of_tokens(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3FFFFu) >> 4) | (uint64_t{1} << 16) |
         (static_cast<uint64_t>(swizzle_bytes >> 4) << 32) | (uint64_t{1} << 62);
}

// The same tokens, `bytes` further along their columns: the swizzle is a function of the address.
SECATEUR_INLINE constexpr uint64_t advanced(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes >> 4);
}

}  // namespace secateur::matrix_descriptor
