// Where an accumulator of mma m16n8 stands: lane 4 * q + t holds rows q (items 0, 1) and q + 8
// (items 2, 3) at tokens 2 * t and 2 * t + 1.
#pragma once

#include "secateur/common.h"

namespace secateur::accumulator {

constexpr int items = 4;
constexpr int tile_tokens = 8;  // n of the instruction
constexpr int tile_bytes = warp_lanes * items * 4;  // of all lanes

SECATEUR_INLINE constexpr int row(int lane, int item) { return lane / 4 + 8 * (item / 2); }
SECATEUR_INLINE constexpr int token(int lane, int item) { return 2 * (lane % 4) + item % 2; }

// After an 8 x 8 transposition a lane holds one token at two neighbouring rows.
SECATEUR_INLINE constexpr int transposed_token(int lane) { return lane / 4; }
SECATEUR_INLINE constexpr int transposed_row(int lane) { return 2 * (lane % 4); }

}  // namespace secateur::accumulator
