// From the C interface's arguments to the kernel's, with all checks that need no device.
#pragma once

#include "library/packed24_arguments.h"
#include "library/shapes.h"
#include "secateur/core/sparse24_skinny.h"
#include "secateur/skinny/problem.h"

namespace secateur::skinny {

// Calls `use` with the instance for these tiles; false if there is none.
template <typename Use>
bool with_shape(int row_tiles, int64_t tokens, const Use& use) {
  return with_tiles<Shape<2, 1>, Shape<2, 2>, Shape<2, 4>, Shape<2, 8>, Shape<4, 1>, Shape<4, 2>,
                    Shape<4, 4>, Shape<4, 8>>(row_tiles, token_tiles(tokens), use);
}

// What the kernel receives; the configuration must be sound.
inline Problem problem_of(const SecateurSparse24Skinny& a) {
  Problem p{};
  p.x = a.linear.x;
  p.weight = static_cast<const uint8_t*>(a.weight);
  p.workspace = static_cast<float*>(a.workspace);
  p.counters = static_cast<uint32_t*>(a.counters);
  p.x_stride = a.linear.x_stride;
  p.output = output_of(a.linear);
  p.columns = static_cast<int>(a.linear.columns);
  p.x_aligned = x_is_aligned(a.linear);
  p.warps = a.warps;
  p.stages = a.stages;
  p.cluster = a.cluster;
  p.lead = a.lead;
  p.ahead = a.ahead;
  p.schedule =
      schedule(p.output.rows, p.columns, a.warps, a.row_tiles, static_cast<int>(a.blocks));
  p.block_panels = block_panels(a.warps, a.row_tiles);
  p.stage_bytes = stage_bytes(a.warps, a.row_tiles, token_tiles(a.linear.tokens));
  return p;
}

inline bool cluster_fits(const SecateurSparse24Skinny& a, const Problem& problem) {
  if (a.cluster == 1) return true;
  const Schedule& plan = problem.schedule;
  return (a.cluster == 2 || a.cluster == 4 || a.cluster == max_cluster) &&
         a.blocks == static_cast<int64_t>(plan.row_blocks) * a.cluster && a.cluster <= plan.steps;
}

inline int check_configuration(const SecateurSparse24Skinny& a) {
  if (const int error = check_shape(a.linear, 4, max_tokens)) return error;
  if (a.warps < 1 || a.warps > max_warps(a.row_tiles, token_tiles(a.linear.tokens)) ||
      (a.row_tiles != 2 && a.row_tiles != 4) ||
      a.warps * a.row_tiles % fragment24::tiles_per_unit != 0) {
    return SECATEUR_BAD_TILES;
  }
  if (a.stages < min_stages || a.stages > max_stages) return SECATEUR_BAD_STAGES;
  if (a.lead < 0) return SECATEUR_BAD_LEAD;
  if (a.ahead < 0 || a.ahead > max_ahead) return SECATEUR_BAD_AHEAD;
  const Problem problem = problem_of(a);
  const Schedule& plan = problem.schedule;
  if (!Schedule::fits(plan.row_blocks, plan.steps, a.blocks)) return SECATEUR_BAD_BLOCKS;
  return cluster_fits(a, problem) ? SECATEUR_OK : SECATEUR_BAD_CLUSTER;
}

}  // namespace secateur::skinny
