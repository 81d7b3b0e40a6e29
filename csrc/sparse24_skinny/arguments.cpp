// What secateur_sparse24_skinny accepts and needs: no CUDA in here.
#include "sparse24_skinny/arguments.h"

using namespace secateur;
using namespace secateur::skinny;

int secateur_sparse24_skinny_needs(const SecateurSparse24Skinny* a,
                                   SecateurSparse24SkinnyNeeds* needs) {
  if (a == nullptr || needs == nullptr) return SECATEUR_NULL_POINTER;
  if (const int error = check_configuration(*a)) return error;
  const Schedule plan = problem_of(*a).schedule;
  const int tiles = token_tiles(a->linear.tokens);
  const int64_t slots = a->cluster > 1 ? 0 : plan.slots();
  needs->workspace_bytes = slots * slot_floats(a->warps, a->row_tiles, tiles) * 4;
  needs->counter_count = slots == 0 ? 0 : plan.row_blocks * a->warps;
  needs->shared_bytes = shared_bytes(a->warps, a->row_tiles, tiles, a->stages, a->cluster);
  return SECATEUR_OK;
}

int secateur_sparse24_skinny_check(const SecateurSparse24Skinny* a) {
  SecateurSparse24SkinnyNeeds needs;
  if (const int error = secateur_sparse24_skinny_needs(a, &needs)) return error;
  if (const int error = check_packed24_pointers(*a)) return error;
  return check_scratch(*a, needs);
}
