// What secateur_sparse24_tiles accepts and needs: no CUDA in here.
#include "sparse24_tiles/arguments.h"

using namespace secateur;
using namespace secateur::tiles;

namespace {

int check_configuration(const SecateurSparse24Tiles& a) {
  const int error = check_shape(a.linear, 4, max_size);
  if (error == SECATEUR_BAD_TOKENS) return SECATEUR_BAD_TOKEN_COUNT;
  if (error) return error;
  if (!with_shape(a.tile_rows, a.tile_tokens, [](auto) {})) return SECATEUR_BAD_TILE;
  if (a.stages < min_stages || a.stages > max_stages) return SECATEUR_BAD_TILE_STAGES;
  const bool fits = TileSchedule::fits(
      ceil_div(a.linear.rows, a.tile_rows), ceil_div(a.linear.tokens, a.tile_tokens),
      ceil_div(a.linear.columns, fragment24::unit_columns), a.blocks, a.waves, a.group);
  return fits ? SECATEUR_OK : SECATEUR_BAD_TILE_SCHEDULE;
}

int check_pointers(const SecateurSparse24Tiles& a) {
  if (const int error = check_packed24_pointers(a)) return error;
  return x_is_aligned(a.linear) ? SECATEUR_OK : SECATEUR_MISALIGNED_X;
}

}  // namespace

int secateur_sparse24_tiles_needs(const SecateurSparse24Tiles* a,
                                  SecateurSparse24TilesNeeds* needs) {
  if (a == nullptr || needs == nullptr) return SECATEUR_NULL_POINTER;
  if (const int error = check_configuration(*a)) return error;
  const TileSchedule plan = schedule_of(*a);
  with_shape(a->tile_rows, a->tile_tokens, [&](auto shape) {
    using S = decltype(shape);
    needs->workspace_bytes = 4 * plan.slots() * S::slot_floats;
    needs->counter_count = static_cast<int64_t>(plan.counters()) * S::warps;
    needs->shared_bytes = shared_bytes(S::stage_bytes, static_cast<int>(a->stages));
  });
  return SECATEUR_OK;
}

int secateur_sparse24_tiles_check(const SecateurSparse24Tiles* a) {
  SecateurSparse24TilesNeeds needs;
  if (const int error = secateur_sparse24_tiles_needs(a, &needs)) return error;
  if (const int error = check_pointers(*a)) return error;
  return check_scratch(*a, needs);
}
