// How a warpgroup's product is told where its tokens lie in shared memory: a tile as x_tile.h has
// it, 128 bytes a token in the order of the 128-byte swizzle, the first token at a multiple of 1024.
#pragma once

#include "secateur/common.h"

namespace secateur::matrix_descriptor {

constexpr int swizzle_bytes = 1024;  // eight tokens: the order repeats

// Addresses and distances are in units of 16 bytes.
SECATEUR_INLINE constexpr uint32_t units(int bytes) { return static_cast<uint32_t>(bytes) >> 4; }

// The lower half of a descriptor says where the tokens lie: for those that lie further along it is
// larger by as many units. The leading distance in its upper bits is not used by this order.
SECATEUR_INLINE constexpr uint32_t lower_half(uint32_t address) {
  return (address & 0x3FFFFu) >> 4 | 1u << 16;
}

// The upper half is the same for all: the distance between groups of eight tokens, and in the top
// bits the swizzle.
SECATEUR_INLINE constexpr uint64_t of_lower_half(uint32_t lower) {
  constexpr uint64_t upper = uint64_t{units(swizzle_bytes)} | uint64_t{1} << 30;
  return upper << 32 | lower;
}
SECATEUR_INLINE constexpr uint64_t of_tokens(uint32_t address) {
  return of_lower_half(lower_half(address));
}

// The same tokens, `bytes` further along their columns: the swizzle is a function of the address.
SECATEUR_INLINE constexpr uint64_t advanced(uint64_t descriptor, int bytes) {
  return descriptor + units(bytes);
}

}  // namespace secateur::matrix_descriptor
