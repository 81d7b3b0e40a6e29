// How the ring is filled: every warp copies its share of a stage by cp.async, on every GPU. A warp
// of its own for that would leave the others fewer registers, which are given out in fours of
// warps.
#pragma once

#include "secateur/device.h"
#include "secateur/tiles/problem.h"

namespace secateur::tiles {

// What one warp copies, step after step, running ahead across tiles.
template <typename Shape>
struct Loader {
  // The warp's share of a stage: pieces of 512 bytes of the row panel that it multiplies, then x of
  // four tokens at a time, of which a lane always copies the same chunk.
  static constexpr int piece_bytes = warp_lanes * 16;
  static constexpr int pieces = fragment24::unit_bytes / piece_bytes;
  static constexpr int weight_copies = static_cast<int>(ceil_div(pieces, Shape::token_warps));
  static constexpr int tokens_at_once = warp_lanes / x_tile::chunks;
  static constexpr int token_step = Shape::warps * tokens_at_once;
  static constexpr int x_copies = Shape::tokens / token_step;
  static constexpr int copies = weight_copies + x_copies;
  static_assert(pieces * piece_bytes == fragment24::unit_bytes, "whole pieces");
  static_assert(x_copies * token_step == Shape::tokens, "whole shares of tokens");
  static_assert(token_step % x_tile::tile_tokens == 0, "a lane's tokens have the same swizzle");

  const Problem& problem;
  TileWalk walk;
  int step = 0;
  int end = 0;
  const uint8_t* weights = nullptr;
  const uint16_t* x = nullptr;
  int tokens = 0;  // from the lane's first on that exist
  int valid = 0;   // bytes of its chunk
  bool panel_exists = false;

  SECATEUR_INLINE Loader(const Problem& problem, const TileWalk& start)
      : problem(problem), walk(start) {}

  // To the next step; false at the end of the thread block's work, when copies become zeros.
  SECATEUR_DEVICE bool next(int warp, int lane) {
    if (++step < end) {
      weights += fragment24::unit_bytes;
      x += x_tile::columns;
    } else {
      TileSegment segment;
      if (!walk.next(segment)) {
        tokens = 0;
        panel_exists = false;
        return false;
      }
      step = segment.first;
      end = segment.end;
      start(problem.schedule.place(segment.tile), warp, lane);
    }
    const int column = lane % x_tile::chunks * x_tile::chunk_columns + step * x_tile::columns;
    valid = x_tile::valid_bytes(column, problem.columns);
    return true;
  }

  SECATEUR_DEVICE void start(const TilePlace& place, int warp, int lane) {
    const int panel = place.row_block * Shape::panels + warp % Shape::row_warps;
    panel_exists = panel < fragment24::panels(problem.output.rows);
    weights = problem.weight + fragment24::unit_offset(panel, step, problem.schedule.steps) +
              warp / Shape::row_warps * piece_bytes + 16 * lane;
    const int first =
        place.token_block * Shape::tokens + warp * tokens_at_once + lane / x_tile::chunks;
    tokens = problem.output.tokens - first;
    x = static_cast<const uint16_t*>(problem.x) + first * problem.x_stride +
        step * x_tile::columns + lane % x_tile::chunks * x_tile::chunk_columns;
  }

  // Copy `i` of a stage of the ring; the first weight_copies need not wait for the kernel in front.
  SECATEUR_DEVICE void copy(int i, uint32_t stage, int warp, int lane) const {
    if (i < weight_copies) {
      const int offset = i * Shape::token_warps * piece_bytes;
      const int piece = warp / Shape::row_warps + i * Shape::token_warps;
      const uint32_t target = stage + warp % Shape::row_warps * fragment24::unit_bytes +
                              warp / Shape::row_warps * piece_bytes + 16 * lane;
      if (panel_exists && piece < pieces) device::copy16(target + offset, weights + offset, 16);
      return;
    }
    const int chunk = lane % x_tile::chunks, later = (i - weight_copies) * token_step;
    const int token = warp * tokens_at_once + lane / x_tile::chunks;
    // Of 0 valid bytes none is read: the address may be anything.
    device::copy16(stage + Shape::weight_bytes + x_tile::chunk_offset(token, chunk) +
                       later * x_tile::token_bytes,
                   x + later * problem.x_stride, later < tokens ? valid : 0);
  }
};

}  // namespace secateur::tiles
