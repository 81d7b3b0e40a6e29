// From the C interface's arguments to the kernel's, with all checks that need no device.
#pragma once

#include "library/packed24_arguments.h"
#include "library/shapes.h"
#include "secateur/core/sparse24_tiles.h"
#include "secateur/tiles/problem.h"

namespace secateur::tiles {

// The instances: rows x tokens of a tile. The larger, the less is read twice; two thread blocks on
// a multiprocessor hide each other's waits; the smaller ones give every multiprocessor a tile.
using Shape256x128 = Shape<4, 2, 8, 1>;
using Shape128x128 = Shape<2, 2, 8, 2>;
using Shape256x64 = Shape<4, 1, 8, 2>;
using Shape128x64 = Shape<2, 2, 4, 3>;

// Calls `use` with the instance of a tile; false if there is none.
template <typename Use>
bool with_shape(int64_t tile_rows, int64_t tile_tokens, const Use& use) {
  const auto fits = [&](auto shape) {
    using S = decltype(shape);
    return tile_rows == S::rows && tile_tokens == S::tokens;
  };
  return with_one_of<Shape256x128, Shape128x128, Shape256x64, Shape128x64>(fits, use);
}

inline TileSchedule schedule_of(const SecateurSparse24Tiles& a) {
  return {static_cast<int>(ceil_div(a.linear.rows, a.tile_rows)),
          static_cast<int>(ceil_div(a.linear.tokens, a.tile_tokens)),
          fragment24::steps(static_cast<int>(a.linear.columns)),
          static_cast<int>(a.blocks),
          static_cast<int>(a.waves),
          static_cast<int>(a.group)};
}

// What the kernel receives; the configuration must be sound.
inline Problem problem_of(const SecateurSparse24Tiles& a) {
  Problem p{};
  p.x = a.linear.x;
  p.weight = static_cast<const uint8_t*>(a.weight);
  p.workspace = static_cast<float*>(a.workspace);
  p.counters = static_cast<uint32_t*>(a.counters);
  p.x_stride = a.linear.x_stride;
  p.output = output_of(a.linear);
  p.columns = static_cast<int>(a.linear.columns);
  p.stages = static_cast<int>(a.stages);
  p.schedule = schedule_of(a);
  return p;
}

}  // namespace secateur::tiles
