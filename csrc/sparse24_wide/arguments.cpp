// What secateur_sparse24_wide accepts and needs: no CUDA in here.
#include "sparse24_wide/arguments.h"

using namespace secateur;
using namespace secateur::wide;

namespace {

bool is_cluster(int size) { return size == 1 || size == 2 || size == 4; }

// Clusters that split the steps of a tile; the rest of the configuration is sound.
int check_steps(const SecateurSparse24Wide& a) {
  if (a.cluster_steps == 1) return SECATEUR_OK;
  const int64_t clusters = a.blocks / (a.cluster_rows * a.cluster_tokens * a.cluster_steps);
  const bool whole = a.waves * clusters >= row_groups(a) * token_groups(a);
  const bool enough = ceil_div(a.linear.columns, fragment24::unit_columns) >= a.cluster_steps;
  int code = SECATEUR_BAD_WIDE_STEPS;
  if (!whole || !enough) return code;
  with_shape(a.warpgroups, a.panels, a.tile_tokens, [&](auto shape) {
    using S = decltype(shape);
    if (!S::splits_steps) return;
    const bool fits = S::sum_bytes <= a.stages * S::stage_bytes;
    code = fits ? SECATEUR_OK : SECATEUR_SMALL_WIDE_RING;
  });
  return code;
}

int check_configuration(const SecateurSparse24Wide& a) {
  const int error = check_shape(a.linear, 4, max_size);
  if (error == SECATEUR_BAD_TOKENS) return SECATEUR_BAD_TOKEN_COUNT;
  if (error) return error;
  if (!with_shape(a.warpgroups, a.panels, a.tile_tokens, [](auto) {})) {
    return SECATEUR_BAD_WIDE_TILE;
  }
  if (a.stages < min_stages || a.stages > max_stages) return SECATEUR_BAD_STAGES;
  if (a.ahead < 0 || a.ahead > max_ahead) return SECATEUR_BAD_AHEAD;
  // The parts of x that a cluster fetches are whole groups of eight tokens, as the swizzle has it,
  // with every tile: 32 tokens by four.
  if (!is_cluster(a.cluster_rows) || !is_cluster(a.cluster_tokens) ||
      a.cluster_rows * a.cluster_tokens > max_cluster) {
    return SECATEUR_BAD_WIDE_CLUSTER;
  }
  if ((!is_cluster(a.cluster_steps) && a.cluster_steps != max_cluster) ||
      a.cluster_rows * a.cluster_tokens * a.cluster_steps > max_cluster) {
    return SECATEUR_BAD_WIDE_STEPS;
  }
  const int cluster = a.cluster_rows * a.cluster_tokens * a.cluster_steps;
  const bool fits = a.blocks % cluster == 0 &&
                    TileSchedule::fits(row_groups(a), token_groups(a),
                                       ceil_div(a.linear.columns, fragment24::unit_columns),
                                       a.blocks / cluster, a.waves, a.group);
  return fits ? check_steps(a) : SECATEUR_BAD_WIDE_SCHEDULE;
}

int check_pointers(const SecateurSparse24Wide& a) {
  if (const int error = check_packed24_pointers(a)) return error;
  if (!x_is_aligned(a.linear)) return SECATEUR_MISALIGNED_X;
  // What a map of x can say: rows that follow each other, with or without a gap.
  const bool apart =
      a.linear.tokens == 1 ||
      (a.linear.x_stride >= a.linear.columns && a.linear.x_stride < int64_t{1} << 39);
  return apart ? SECATEUR_OK : SECATEUR_BAD_X_STRIDE;
}

}  // namespace

int secateur_sparse24_wide_needs(const SecateurSparse24Wide* a, SecateurSparse24WideNeeds* needs) {
  if (a == nullptr || needs == nullptr) return SECATEUR_NULL_POINTER;
  if (const int error = check_configuration(*a)) return error;
  const Problem problem = problem_of(*a);
  const TileSchedule& plan = problem.schedule;
  with_shape(a->warpgroups, a->panels, a->tile_tokens, [&](auto shape) {
    using S = decltype(shape);
    const int64_t size = problem.cluster.size();
    needs->workspace_bytes = 4 * plan.slots() * size * S::slot_floats;
    needs->counter_count = plan.counters() * size * S::warps;
    needs->shared_bytes = shared_bytes<S>(a->stages);
  });
  return SECATEUR_OK;
}

int secateur_sparse24_wide_check(const SecateurSparse24Wide* a) {
  SecateurSparse24WideNeeds needs;
  if (const int error = secateur_sparse24_wide_needs(a, &needs)) return error;
  if (const int error = check_pointers(*a)) return error;
  return check_scratch(*a, needs);
}
