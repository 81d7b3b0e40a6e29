/* A packed 2:4 weight and many tokens; compute capability 9.0. */
#ifndef SECATEUR_CORE_SPARSE24_WIDE_H
#define SECATEUR_CORE_SPARSE24_WIDE_H

#include "secateur/core/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Any number of tokens to 2**30; columns divisible by 4; rows of x start at multiples of 16 bytes.
 * A thread block computes tiles of warpgroups * panels * 64 rows x tile_tokens tokens of y, and a
 * cluster a group of cluster_rows x cluster_tokens tiles at a time; secateur/tile_schedule.h says
 * who computes which group. Where clusters split K as well, they compute whole tiles, of 128 rows x
 * 128 or 256 x 64 at most, whose sums (4 bytes each) fit into the ring of stages. */
struct SecateurSparse24Wide {
  struct SecateurLinear linear;
  const void* weight; /* [panels, steps, 4608] bytes */
  void* workspace;    /* secateur_sparse24_wide_needs; used by this call only; may be null */
  void* counters;     /* uint32, zero; zero again afterwards; for one stream at a time */
  int64_t workspace_bytes;
  int64_t counter_count;
  int32_t warpgroups; /* that multiply */
  int32_t panels;     /* of 64 rows, a warpgroup */
  int32_t tile_tokens;
  int32_t stages;         /* of 64 columns, in flight: 2 to 16 */
  int32_t cluster_rows;   /* tiles of rows that fetch x together: 1, 2, 4 */
  int32_t cluster_tokens; /* tiles of tokens that fetch weights together: 1, 2, 4 */
  int32_t cluster_steps;  /* thread blocks that split the steps of a tile: 1, 2, 4, 8 */
  int64_t blocks;         /* thread blocks: whole clusters */
  int64_t waves;          /* groups of tiles a cluster that are not split along K */
  int64_t group;          /* groups of tiles, along rows, that are walked side by side */
  /* When a thread block lets the next kernel start: behind its first stages, or, if not 0, when it
   * has asked for all weights. The result is the same. */
  int32_t late;
  /* Steps behind those in flight whose weights are asked for into the L2 cache, 0 to 1024. The
   * result is the same. */
  int32_t ahead;
};
struct SecateurSparse24WideNeeds {
  int64_t workspace_bytes;
  int64_t counter_count;
  int64_t shared_bytes; /* a thread block */
};
SECATEUR_API int secateur_sparse24_wide_needs(const struct SecateurSparse24Wide* arguments,
                                              struct SecateurSparse24WideNeeds* needs);
SECATEUR_API int secateur_sparse24_wide_check(const struct SecateurSparse24Wide* arguments);
SECATEUR_API int secateur_sparse24_wide(const struct SecateurSparse24Wide* arguments, void* stream);

#ifdef __cplusplus
}
#endif
#endif
