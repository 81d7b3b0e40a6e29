/* A packed 2:4 weight and few tokens. */
#ifndef SECATEUR_CORE_SPARSE24_SKINNY_H
#define SECATEUR_CORE_SPARSE24_SKINNY_H

#include "secateur/core/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* 1 to 64 tokens; columns divisible by 4. */
struct SecateurSparse24Skinny {
  struct SecateurLinear linear;
  const void* weight; /* [panels, steps, 4608] bytes */
  void* workspace;    /* secateur_sparse24_skinny_needs; used by this call only; may be null */
  void* counters;     /* uint32, zero; zero again afterwards; for one stream at a time */
  int64_t workspace_bytes;
  int64_t counter_count;
  int32_t warps;     /* that multiply: 1 to 8 (4 row tiles and over 32 tokens: to 4) */
  int32_t row_tiles; /* of 16 rows, a warp: 2 or 4; warps * row_tiles divisible by 4 */
  int32_t stages;    /* of 64 columns, in flight: 2 to 16 */
  /* Thread blocks of a cluster, 1, 2, 4 or 8. Above 1 (9.0 only) each cluster owns one row block,
   * and adds up through shared memory: blocks = row blocks * cluster, cluster at most the steps. */
  int32_t cluster;
  int64_t blocks; /* thread blocks, 1 to row blocks * steps of 64 columns */
  /* Steps that a thread block has not asked for yet when it lets the next kernel start; 0: it does
   * so behind its first stages. The result is the same. */
  int32_t lead;
  /* Steps behind those in flight whose weights are asked for into the L2 cache (9.0 only), 0 to
   * 1024. The result is the same. */
  int32_t ahead;
};
struct SecateurSparse24SkinnyNeeds {
  int64_t workspace_bytes;
  int64_t counter_count;
  int64_t shared_bytes; /* a thread block */
};
SECATEUR_API int secateur_sparse24_skinny_needs(const struct SecateurSparse24Skinny* arguments,
                                                struct SecateurSparse24SkinnyNeeds* needs);
SECATEUR_API int secateur_sparse24_skinny_check(const struct SecateurSparse24Skinny* arguments);
SECATEUR_API int secateur_sparse24_skinny(const struct SecateurSparse24Skinny* arguments,
                                          void* stream);

#ifdef __cplusplus
}
#endif
#endif
