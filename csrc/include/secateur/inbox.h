// Where sums lie that the thread blocks of a cluster hand to each other. They have summed other
// columns of the same tiles of 16 rows; tile t is finished by rank t % ranks, which has a place in
// its shared memory for what each rank hands it of each of its tiles.
#pragma once

#include "secateur/common.h"

namespace secateur {

struct Inbox {
  int tiles;  // of a thread block
  int ranks;  // a power of two
  int tile_bytes;

  SECATEUR_INLINE constexpr int bytes() const { return ranks == 1 ? 0 : inbound(0); }
  SECATEUR_INLINE constexpr int owner(int tile) const { return tile & (ranks - 1); }
  // In the owner's, of what comes from rank `from`.
  SECATEUR_INLINE constexpr int place(int tile, int from) const {
    return (tile - owner(tile) + from) * tile_bytes;
  }
  // Bytes that a rank gets; rank 0 gets the most.
  SECATEUR_INLINE constexpr int inbound(int rank) const {
    return ((tiles + ranks - 1 - rank) & ~(ranks - 1)) * tile_bytes;
  }
};

}  // namespace secateur
