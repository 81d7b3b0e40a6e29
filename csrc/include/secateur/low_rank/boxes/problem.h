// Both kernels of up to 16 tokens for 9.0: one warp fetches boxes of a factor for all others, which
// split the columns of each stage and add up at the end of each row block.
#pragma once

#include "secateur/accumulator.h"
#include "secateur/device/tensor_copy.h"
#include "secateur/inbox.h"
#include "secateur/low_rank/problem.h"

namespace secateur::low_rank::boxes {

constexpr int max_tokens = 16;
constexpr int max_row_tiles = 4;
constexpr int warps = 8;  // that multiply; one more fetches
constexpr int threads = (warps + 1) * warp_lanes;

// A box has 64 columns of all the rows of a thread block, swizzled, and two warps multiply a half
// of it each.
constexpr int box_columns = 64;
constexpr int box_row_bytes = 2 * box_columns;
constexpr int stage_boxes = warps / 2;
constexpr int stage_columns = stage_boxes * box_columns;
constexpr int chunk_boxes = chunk_columns / box_columns;
constexpr int alignment = 1024;  // at which the swizzle repeats

SECATEUR_INLINE constexpr int weight_box_bytes(int row_tiles) {
  return row_tiles * tile_rows * box_row_bytes;
}
SECATEUR_INLINE constexpr int x_box_bytes(int token_tiles) {
  return token_tiles * 8 * box_row_bytes;
}
SECATEUR_INLINE constexpr int down_stage_bytes(int row_tiles, int token_tiles) {
  return stage_boxes * (weight_box_bytes(row_tiles) + x_box_bytes(token_tiles));
}
SECATEUR_INLINE constexpr int up_stage_bytes(int row_tiles) {
  return stage_boxes * weight_box_bytes(row_tiles);
}

// What lies behind the ring: t, sums of all warps and of all thread blocks of a cluster, whether t
// is finite, mbarriers.
SECATEUR_INLINE constexpr int64_t hidden_bytes(int rank, int tokens, int cluster) {
  return ceil_div(chunks(rank), cluster) * tokens * hidden_row_bytes;  // of one group
}
// Rows of a box of the second kernel: with gate_up there is one of either kind.
SECATEUR_INLINE constexpr int up_box_rows(int row_tiles, bool gated) {
  return gated ? gated_features(row_tiles) : row_tiles * tile_rows;
}
// Of a row block's tiles of 16 rows and eight tokens. Two inboxes are used in turns.
SECATEUR_INLINE constexpr Inbox inbox(int tiles, int cluster) {
  return {tiles, cluster, accumulator::tile_bytes};
}
SECATEUR_INLINE constexpr int inboxes_bytes(int tiles, int cluster) {
  return 2 * inbox(tiles, cluster).bytes();
}
constexpr int flags_bytes = 4 * warps;
constexpr int other_barriers = 3;  // of meetings, and two of the cluster's sums
SECATEUR_INLINE constexpr int64_t shared_bytes(int stages, int stage_bytes, int64_t hidden,
                                               int tiles, int cluster) {
  return alignment + static_cast<int64_t>(stages) * (stage_bytes + 16) + hidden +
         warps * tiles * accumulator::tile_bytes + inboxes_bytes(tiles, cluster) + flags_bytes +
         8 * other_barriers;
}

struct Places {
  uint32_t ring;
  uint32_t hidden;
  uint32_t sums;
  uint32_t inboxes;
  uint32_t flags;
  uint32_t barriers;  // full, empty
  uint32_t meeting;   // a barrier, and two of the cluster's sums

  SECATEUR_INLINE constexpr Places(uint32_t shared, const Division& d, int64_t hidden_bytes,
                                   int tiles, int cluster)
      : ring((shared + alignment - 1) / alignment * alignment),
        hidden(ring + d.stages * d.stage_bytes),
        sums(hidden + static_cast<uint32_t>(hidden_bytes)),
        inboxes(sums + warps * tiles * accumulator::tile_bytes),
        flags(inboxes + inboxes_bytes(tiles, cluster)),
        barriers(flags + flags_bytes),
        meeting(barriers + 16 * d.stages) {}

  SECATEUR_INLINE Ring ring_of(const Division& d) const {
    return {{ring, d.stages}, barriers, d.stage_bytes};
  }
};

// Boxes [first, end) of a factor's columns.
struct Range {
  int first;
  int end;

  SECATEUR_INLINE constexpr int stages() const {
    return static_cast<int>(ceil_div(end - first, stage_boxes));
  }
  SECATEUR_INLINE constexpr int boxes(int stage) const {
    const int left = end - first - stage * stage_boxes;
    return left < stage_boxes ? left : stage_boxes;
  }
};

// The part-th of `parts` ranges of whole chunks.
SECATEUR_INLINE constexpr Range range_of(int columns, int part, int parts) {
  const int64_t all = chunks(columns);
  const int boxes = static_cast<int>(ceil_div(columns, box_columns));
  const int first = static_cast<int>(part * all / parts) * chunk_boxes;
  const int end = static_cast<int>((part + 1) * all / parts) * chunk_boxes;
  return {first, end < boxes ? end : boxes};
}

// What the kernels receive. Maps have boxes of a thread block's rows, and of all tokens.
struct BoxDown {
  Down down;
  int cluster;  // divides down.splits, of which it leaves one sum for so many
  device::TensorMap weight;
  device::TensorMap x;
};
struct BoxUp {
  Up up;  // blocks: clusters
  int cluster;
  device::TensorMap weight;
};

}  // namespace secateur::low_rank::boxes
