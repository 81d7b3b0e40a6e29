/* A weight that is two thin factors, with or without a packed 2:4 weight beside them, and few
 * tokens: y = epilogue((x @ down.T) @ up.T [+ x @ sparse.T]). Two kernels, t = x @ down.T and the
 * rest; t stays in fp32. */
#ifndef SECATEUR_CORE_LOW_RANK_H
#define SECATEUR_CORE_LOW_RANK_H

#include "secateur/core/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How one of the two kernels divides its work. A thread block owns 16 * row_tiles rows of the
 * factor at a time, and its warps take chunks of 128 columns in turns, each through a ring of its
 * own. With `boxes` (9.0, up to 16 tokens, no sparse, for down x and down in rows that start at
 * multiples of 16 bytes) one more warp fetches boxes of 256 columns for all, and the thread blocks
 * of a cluster split the columns and add up. */
struct SecateurLowRankDivision {
  int32_t warps;     /* 1 to 8; 8 with boxes */
  /* 1 or 2; 2 for more than 16 tokens, and for up with silu_and_mul or gate_up. With boxes 1 to 4,
   * for up with silu_and_mul 2 or 4. */
  int32_t row_tiles;
  int32_t stages;    /* chunks in flight, a warp: 1 to 16; with boxes those of all warps, from 2 */
  int32_t boxes;     /* 0, or the size of clusters: 1, 2, 4 or 8; divides `blocks` */
  int64_t blocks;    /* down: into how many ranges K is split, 1 to 64; up: thread blocks */
  /* Stages behind those in flight whose weights are asked for into the L2 cache, 0 to 1024; 0
   * without boxes. The result is the same. */
  int32_t ahead;
};

/* 1 to 64 tokens. In `linear`, gate_up is the row order of `sparse`; silu_and_mul needs it where
 * there is a sparse weight, and even rows [gate; up] elsewhere. */
struct SecateurLowRank {
  struct SecateurLinear linear;
  const void* down;   /* [groups * rank, columns], contiguous */
  const void* up;     /* [rows, rank], contiguous */
  const void* sparse; /* null, or [panels, steps, 4608] bytes of a packed weight [rows, columns] */
  const int64_t* group_rows; /* of the host: rows of each group, which add up to rows */
  int64_t groups;            /* 1 to 8 */
  int64_t rank;              /* of a group; divisible by 16 */
  void* workspace;           /* secateur_low_rank_needs; used by this call only */
  int64_t workspace_bytes;
  struct SecateurLowRankDivision down_division;
  struct SecateurLowRankDivision up_division;
};
struct SecateurLowRankNeeds {
  int64_t workspace_bytes;
  int64_t down_shared_bytes; /* a thread block */
  int64_t up_shared_bytes;
};
SECATEUR_API int secateur_low_rank_needs(const struct SecateurLowRank* arguments,
                                         struct SecateurLowRankNeeds* needs);
SECATEUR_API int secateur_low_rank_check(const struct SecateurLowRank* arguments);
SECATEUR_API int secateur_low_rank(const struct SecateurLowRank* arguments, void* stream);

#ifdef __cplusplus
}
#endif
#endif
