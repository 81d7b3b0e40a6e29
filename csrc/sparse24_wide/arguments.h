// From the C interface's arguments to the kernel's.
#pragma once

#include "library/packed24_arguments.h"
#include "library/shapes.h"
#include "secateur/core/sparse24_wide.h"
#include "secateur/wide/problem.h"

namespace secateur::wide {

// Calls `use` with the instance of a tile; false if there is none.
template <typename Use>
bool with_shape(int64_t warpgroups, int64_t panels, int64_t tokens, const Use& use) {
  const auto fits = [&](auto shape) {
    using S = decltype(shape);
    return warpgroups == S::warpgroups && panels == S::panels && tokens == S::tokens;
  };
  return with_one_of<Shape<2, 1, 32>, Shape<2, 2, 32>, Shape<2, 1, 64>, Shape<2, 2, 64>,
                     Shape<2, 1, 128>, Shape<2, 2, 128>, Shape<3, 1, 192>, Shape<2, 1, 256>>(fits,
                                                                                             use);
}

// Groups of tiles along rows and along tokens.
inline int64_t row_groups(const SecateurSparse24Wide& a) {
  const int64_t rows = static_cast<int64_t>(a.warpgroups) * a.panels * fragment24::unit_rows;
  return ceil_div(a.linear.rows, rows * a.cluster_rows);
}
inline int64_t token_groups(const SecateurSparse24Wide& a) {
  return ceil_div(a.linear.tokens, static_cast<int64_t>(a.tile_tokens) * a.cluster_tokens);
}

// What the kernel receives but for the map of x; the configuration must be sound.
inline Problem problem_of(const SecateurSparse24Wide& a) {
  Problem p{};
  p.weight = static_cast<const uint8_t*>(a.weight);
  p.workspace = static_cast<float*>(a.workspace);
  p.counters = static_cast<uint32_t*>(a.counters);
  p.output = output_of(a.linear);
  p.stages = a.stages;
  p.late = a.late != 0;
  p.ahead = a.ahead;
  p.cluster = {a.cluster_rows, a.cluster_tokens, a.cluster_steps};
  p.schedule = {static_cast<int>(row_groups(a)),
                static_cast<int>(token_groups(a)),
                fragment24::steps(static_cast<int>(a.linear.columns)),
                static_cast<int>(a.blocks / p.cluster.size()),
                static_cast<int>(a.waves),
                static_cast<int>(a.group)};
  p.slots_per_block = p.schedule.slots_per_block();
  return p;
}

// Tokens of a box of x.
inline int box_tokens(const SecateurSparse24Wide& a) { return a.tile_tokens / a.cluster_rows; }

}  // namespace secateur::wide
