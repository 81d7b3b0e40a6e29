// One step of 64 columns for a warp: neighbouring sub-tiles of rows in fragment order times token
// tiles of x, both in shared memory.
#pragma once

#include "secateur/device.h"
#include "secateur/fragment24.h"
#include "secateur/warp_sums.h"
#include "secateur/x_tile.h"

namespace secateur {

// `weights` and `x` are shared addresses of the first sub-tile and the first token tile. All sums
// get fragment 0 before any gets fragment 1, so that neighbouring instructions do not wait for each
// other. Tokens are loaded one tile ahead, weights of fragment 1 as soon as those of fragment 0
// have been used for the last time. `between(i)` is called before the products of each token tile,
// i from 0 to 2 * TokenTiles - 1: there is time for other things.
template <typename Value, int RowTiles, int TokenTiles, typename Between>
SECATEUR_DEVICE void multiply_step(WarpSums<RowTiles, TokenTiles>& sums, uint32_t weights,
                                   uint32_t x, int lane, const Between& between) {
  using namespace fragment24;
  const uint32_t my_values = weights + value_offset(0, lane);
  const uint32_t my_metadata = weights + metadata_offset(lane);
  const uint32_t operand = x + x_tile::operand_offset(lane);
  Words4 values[RowTiles], tokens[2];
  uint32_t metadata[RowTiles];
  tokens[0] = device::load_matrices(operand);
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
    values[r] = device::load_shared16(my_values + r * tile_bytes);
    metadata[r] = device::load_shared4(my_metadata + r * tile_bytes);
  }
#pragma unroll
  for (int now = 0; now < 2 * TokenTiles; ++now) {
    const int next = now + 1, n = now % TokenTiles;
    if (next < 2 * TokenTiles) {
      const uint32_t flip = next / TokenTiles * x_tile::second_fragment;
      tokens[next % 2] = device::load_matrices((operand ^ flip) +
                                               next % TokenTiles * x_tile::token_tile_bytes);
    }
    between(now);
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) {
      if (now < TokenTiles) {
        device::multiply_sparse<Value, 0>(sums[r][n], values[r], tokens[now % 2], metadata[r]);
      } else {
        device::multiply_sparse<Value, 1>(sums[r][n], values[r], tokens[now % 2], metadata[r]);
      }
      if (next == TokenTiles) {
        values[r] = device::load_shared16(my_values + r * tile_bytes + fragment_bytes);
      }
    }
  }
}

}  // namespace secateur
