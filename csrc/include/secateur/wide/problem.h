// y = epilogue(x @ weight.T) for many tokens: the problem as the kernel receives it.
#pragma once

#include "secateur/accumulator.h"
#include "secateur/common.h"
#include "secateur/device/tensor_copy.h"
#include "secateur/fragment24.h"
#include "secateur/matrix_descriptor.h"
#include "secateur/output.h"
#include "secateur/ring.h"
#include "secateur/tile_schedule.h"
#include "secateur/wide/member.h"
#include "secateur/wide/staging.h"
#include "secateur/x_tile.h"

namespace secateur::wide {

constexpr int warpgroup_warps = 4;
constexpr int min_stages = 2;
constexpr int max_stages = 16;
constexpr int stage_barriers_bytes = 16;  // a full barrier, and behind it an empty one
constexpr int empty_offset = 8;

struct Problem {
  device::TensorMap x;    // boxes of 64 columns x Tokens / cluster.rows tokens
  const uint8_t* weight;  // fragment order, 16-byte aligned
  float* workspace;       // schedule.slots() * cluster.size() * slot_floats, 16-byte aligned
  uint32_t* counters;     // schedule.counters() * cluster.size() * warps, zero before and after
  Output output;
  int stages;
  bool late;  // the next kernel may start when all weights have been asked for, and not before
  int ahead;  // steps behind those in the ring whose weights are asked for into the L2 cache
  Cluster cluster;
  TileSchedule schedule;  // of groups of tiles, for clusters
  int slots_per_block;    // of the schedule, which has to divide for it
};

// A tile of y: each of Warpgroups multiplies Panels panels of 64 rows by Tokens tokens.
template <int Warpgroups_, int Panels_, int Tokens_>
struct Shape {
  static constexpr int warpgroups = Warpgroups_;
  static constexpr int panels = Panels_;
  static constexpr int tokens = Tokens_;
  static constexpr int token_tiles = tokens / accumulator::tile_tokens;
  static constexpr int warps = warpgroups * warpgroup_warps;  // that multiply
  static constexpr int block_panels = warpgroups * panels;
  // One more warpgroup copies.
  static constexpr int threads = (warpgroups + 1) * warpgroup_warps * warp_lanes;

  // A slot of the workspace holds the accumulators of a thread block, warp after warp.
  static constexpr int slot_floats = block_panels * fragment24::unit_rows * tokens;

  static constexpr int weight_bytes = block_panels * fragment24::unit_bytes;  // of a stage
  static constexpr int x_bytes = tokens * x_tile::token_bytes;
  static_assert(x_bytes % matrix_descriptor::swizzle_bytes == 0, "x of a stage starts aligned");

  // Clusters can split its steps: larger tiles have thread blocks enough, and no registers left.
  static constexpr bool splits_steps = panels * tokens <= 128;
  static constexpr int sum_bytes = 4 * slot_floats;
  static constexpr int stage_bytes = weight_bytes + x_bytes;
};

// What a configuration needs of shared memory: the ring starts at a multiple of 1024, and behind it
// are the barriers of each stage, then what the warps write results through.
template <typename Shape>
SECATEUR_INLINE constexpr int shared_bytes(int stages) {
  return matrix_descriptor::swizzle_bytes - 16 +
         stages * (Shape::stage_bytes + stage_barriers_bytes) + Shape::warps * staging::bytes;
}

// x of all stages, then the weights of all stages.
template <typename Shape>
struct Ring : RingPlace {
  SECATEUR_INLINE uint32_t x() const { return base + stage * Shape::x_bytes; }
  SECATEUR_INLINE uint32_t weights() const {
    return base + stages * Shape::x_bytes + stage * Shape::weight_bytes;
  }
  SECATEUR_INLINE uint32_t barriers() const {
    return base + stages * Shape::stage_bytes;
  }
  SECATEUR_INLINE uint32_t full(int i) const { return barriers() + stage_barriers_bytes * i; }
  SECATEUR_INLINE uint32_t empty(int i) const { return full(i) + empty_offset; }
  SECATEUR_INLINE uint32_t staging(int warp) const {
    return full(stages) + warp * staging::bytes;
  }
};

}  // namespace secateur::wide
