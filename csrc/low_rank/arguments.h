// From the C interface's arguments to the kernels', with all checks that need no device.
#pragma once

#include "library/linear_arguments.h"
#include "library/shapes.h"
#include "secateur/core/low_rank.h"
#include "secateur/low_rank/boxes/problem.h"
#include "secateur/low_rank/problem.h"

namespace secateur::low_rank {

// Calls `use` with the instance for these tiles; false if there is none.
template <typename Use>
bool with_shape(int row_tiles, int64_t tokens, const Use& use) {
  return with_tiles<Shape<1, 1>, Shape<1, 2>, Shape<2, 1>, Shape<2, 2>, Shape<2, 4>, Shape<2, 8>>(
      row_tiles, token_tiles(tokens), use);
}
template <typename Use>
bool with_box_shape(int row_tiles, int64_t tokens, const Use& use) {
  return with_tiles<Shape<1, 1>, Shape<1, 2>, Shape<2, 1>, Shape<2, 2>, Shape<3, 1>, Shape<3, 2>,
                    Shape<4, 1>, Shape<4, 2>>(row_tiles, token_tiles(tokens), use);
}

// Thread blocks that leave one sum together.
inline int cluster_of(const SecateurLowRankDivision& division) {
  return division.boxes > 1 ? division.boxes : 1;
}
// Sums of t that the first kernel leaves, to be added by the second.
inline int64_t hidden_sums(const SecateurLowRank& a) {
  return a.down_division.blocks / cluster_of(a.down_division);
}

// What the kernels receive; the configuration must be sound.
Down down_of(const SecateurLowRank& a);
Up up_of(const SecateurLowRank& a);

inline int64_t down_shared_bytes(const SecateurLowRank& a) {
  const int row_tiles = a.down_division.row_tiles;
  if (a.down_division.boxes) {
    const Division d = down_of(a).division;
    return boxes::shared_bytes(d.stages, d.stage_bytes, 0,
                               row_tiles * token_tiles(a.linear.tokens), a.down_division.boxes);
  }
  return shared_bytes(down_of(a).division, row_tiles, token_tiles(a.linear.tokens), 0);
}
inline int64_t up_shared_bytes(const SecateurLowRank& a) {
  const Up up = up_of(a);
  if (a.up_division.boxes) {
    const int cluster = a.up_division.boxes;
    const int64_t hidden =
        hidden_sets(up) * boxes::hidden_bytes(up.rank, up.output.tokens, cluster);
    return boxes::shared_bytes(up.division.stages, up.division.stage_bytes, hidden,
                               a.up_division.row_tiles * token_tiles(a.linear.tokens), cluster);
  }
  return shared_bytes(up.division, a.up_division.row_tiles, token_tiles(a.linear.tokens),
                      hidden_bytes(up));
}

inline int64_t down_blocks(const SecateurLowRank& a) {
  return ceil_div(a.groups * a.rank, tile_rows * a.down_division.row_tiles) *
         a.down_division.blocks;
}

}  // namespace secateur::low_rank
