// A tile of y whose K several thread blocks share: each warp leaves its sums in a slot of the
// workspace, and the last to arrive for the same rows and tokens adds the slots in their order, so
// that results repeat bit for bit. Tickets decide who is last: nobody waits for another.
#pragma once

#include "secateur/multiply24.h"

namespace secateur {

// Floats of one warp in a slot: its accumulators, in the order of its lanes.
SECATEUR_INLINE constexpr int warp_slot_floats(int row_tiles, int token_tiles) {
  return row_tiles * token_tiles * warp_lanes * accumulator::items;
}
SECATEUR_INLINE constexpr int warp_slot_offset(int row_tile, int token_tile, int lane,
                                               int token_tiles) {
  return ((row_tile * token_tiles + token_tile) * warp_lanes + lane) * accumulator::items;
}

// Leaves `sums` in slot `mine` of `count`; `slot(i)` is the warp's part of slot i. True for the
// last warp to do so, which then has the sum of all slots. `counter` must be zero before the first,
// and is zero again after the last. `InFlight` loads of 16 bytes a lane wait for the L2 cache
// together.
template <int RowTiles, int TokenTiles, int InFlight = 4, typename Slot>
SECATEUR_DEVICE bool add_shares(WarpSums<RowTiles, TokenTiles>& sums, int mine, int count,
                                uint32_t* counter, const Slot& slot) {
  const int lane = device::lane();
  float* target = slot(mine) + warp_slot_offset(0, 0, lane, TokenTiles);
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
    for (int n = 0; n < TokenTiles; ++n) {
      device::store_partial(target + warp_slot_offset(r, n, 0, TokenTiles), sums[r][n]);
    }
  }
  // In this order: the fence of the lane that takes the ticket covers what the other lanes wrote.
  device::sync_warp();
  device::fence_device();
  uint32_t before = 0;
  if (lane == 0) before = device::take_ticket(counter);
  before = device::shuffle(before, 0);
  if (before != static_cast<uint32_t>(count - 1)) return false;
  device::fence_device();
  device::sync_warp();
  if (lane == 0) device::store(counter, 0u);
  clear_sums<RowTiles, TokenTiles>(sums);
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const float* source = slot(i) + warp_slot_offset(0, 0, lane, TokenTiles);
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
      for (int n = 0; n < TokenTiles; ++n) {
        device::add_partial(sums[r][n], source + warp_slot_offset(r, n, 0, TokenTiles));
        // More loads in flight than these do not fit into registers.
        if ((r * TokenTiles + n + 1) % InFlight == 0) device::sync_warp();
      }
    }
  }
  return true;
}

}  // namespace secateur
