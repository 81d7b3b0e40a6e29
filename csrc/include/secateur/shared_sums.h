// A tile of y whose K several thread blocks share: each warp leaves its sums in a slot of the
// workspace, and the last to arrive for the same rows and tokens adds the slots in their order, so
// that results repeat bit for bit. Tickets decide who is last: nobody waits for another.
#pragma once

#include "secateur/warp_sums.h"

namespace secateur {

// Floats of one warp in a slot: its accumulators, in the order of its lanes.
SECATEUR_INLINE constexpr int warp_slot_floats(int row_tiles, int token_tiles) {
  return row_tiles * token_tiles * warp_lanes * accumulator::items;
}
SECATEUR_INLINE constexpr int warp_slot_offset(int row_tile, int token_tile, int lane,
                                               int token_tiles) {
  return ((row_tile * token_tiles + token_tile) * warp_lanes + lane) * accumulator::items;
}

// Stores a warp's accumulators from `First` to `End`, counted over rows and tokens.
template <int First, int End, int RowTiles, int TokenTiles>
SECATEUR_DEVICE void leave_in_slot(const WarpSums<RowTiles, TokenTiles>& sums, float* target) {
#pragma unroll
  for (int i = First; i < End; ++i) {
    const int r = i / TokenTiles, n = i % TokenTiles;
    device::store_partial(target + warp_slot_offset(r, n, 0, TokenTiles), sums[r][n]);
  }
}

// Leaves `sums` in slot `mine` of `count`; `slot(i)` is the warp's part of slot i. True for the
// last warp to do so, which then has the sum of all slots. `counter` must be zero before the first,
// and is zero again after the last. `InFlight` loads of 16 bytes a lane wait for the L2 cache
// together.
//
// Sums are added in the order of the slots. The first two can be added either way round: the last
// one, if it is among them, keeps its own in registers. It need not even leave them, if it sees in
// time that it will be the last; it looks while the first of them are on their way.
template <int RowTiles, int TokenTiles, int InFlight = 4, typename Slot>
SECATEUR_DEVICE bool add_shares(WarpSums<RowTiles, TokenTiles>& sums, int mine, int count,
                                uint32_t* counter, const Slot& slot) {
  constexpr int all = RowTiles * TokenTiles, early = all / 4;
  const int lane = device::lane();
  const uint32_t others = count - 1;
  const bool keeps = mine < 2;
  float* target = slot(mine) + warp_slot_offset(0, 0, lane, TokenTiles);
  uint32_t before = 0;
  if (lane == 0) before = device::peek_ticket(counter);
  leave_in_slot<0, early>(sums, target);
  before = device::shuffle(before, 0);
  if (keeps && before == others) {
    device::fence_device();
  } else {
    leave_in_slot<early, all>(sums, target);
    // In this order: what the ticket orders covers what the other lanes wrote, and will read.
    device::sync_warp();
    if (lane == 0) before = device::take_ordered_ticket(counter);
    before = device::shuffle(before, 0);
    if (before != others) return false;
  }
  device::sync_warp();
  if (lane == 0) device::store(counter, 0u);
  if (!keeps) clear_sums(sums);
  const int second = keeps ? 2 : 1;  // of the slots that are read
#pragma unroll 1
  for (int i = keeps ? 1 - mine : 0; i < count; i = i + 1 > second ? i + 1 : second) {
    const float* source = slot(i) + warp_slot_offset(0, 0, device::lane(), TokenTiles);
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
