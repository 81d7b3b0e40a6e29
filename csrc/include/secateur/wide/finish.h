// What becomes of a warp's sums: those of a group that several clusters share are added up, then
// they go to y.
#pragma once

#include "secateur/shared_sums.h"
#include "secateur/wide/problem.h"
#include "secateur/write_block.h"

namespace secateur::wide {

// A warp's sub-tiles are one of four in each of its panels.
template <typename Shape>
using Sums = WarpSums<Shape::panels, Shape::token_tiles>;

// Sums of part of K: true where this warp is the last for its rows of the group and has them all.
template <typename Shape>
SECATEUR_DEVICE bool reduce(Sums<Shape>& sums, const Problem& problem, const Member& member,
                            int group, int warp) {
  const TileSchedule& schedule = problem.schedule;
  const int first = schedule.first_contributor(group);
  const int count = schedule.last_contributor(group) - first + 1;
  const bool later = schedule.later(first, group);
  const int size = member.cluster.size();
  float* workspace = problem.workspace + warp * warp_slot_floats(Shape::panels, Shape::token_tiles);
  uint32_t* counter =
      problem.counters +
      (static_cast<int64_t>(schedule.counter(group)) * size + member.rank) * Shape::warps + warp;
  return add_shares<Shape::panels, Shape::token_tiles>(
      sums, member.index - first, count, counter, [&](int i) {
        const int64_t slot = schedule.slot(first + i, i == 0 && later) * size + member.rank;
        return workspace + slot * Shape::slot_floats;
      });
}

// `tile`: the sub-tile of the first panel. A few tokens at a time: all together do not fit into
// registers.
template <typename Value, typename Shape>
SECATEUR_DEVICE void write(const Output& output, int tile, int first_token,
                           const Sums<Shape>& sums) {
  constexpr int width = Shape::token_tiles < 8 ? Shape::token_tiles : 8;
  static_assert(Shape::token_tiles % width == 0, "whole parts");
#pragma unroll
  for (int p = 0; p < Shape::panels; ++p) {
#pragma unroll
    for (int n = 0; n < Shape::token_tiles; n += width) {
      const int token = first_token + n * accumulator::tile_tokens;
      if (token >= output.tokens) break;
      WarpSums<1, width> part;
#pragma unroll
      for (int i = 0; i < width; ++i) {
#pragma unroll
        for (int j = 0; j < accumulator::items; ++j) part[0][i][j] = sums[p][n + i][j];
      }
      write_block<Value, 1, width>(output, tile + p * fragment24::tiles_per_unit, token, part);
    }
  }
}

}  // namespace secateur::wide
