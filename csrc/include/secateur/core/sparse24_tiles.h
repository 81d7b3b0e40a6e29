/* A packed 2:4 weight and many tokens: y is cut into tiles. */
#ifndef SECATEUR_CORE_SPARSE24_TILES_H
#define SECATEUR_CORE_SPARSE24_TILES_H

#include "secateur/core/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Any number of tokens; columns divisible by 4; rows of x start at multiples of 16 bytes. */
struct SecateurSparse24Tiles {
  struct SecateurLinear linear;
  const void* weight; /* [panels, steps, 4608] bytes */
  void* workspace;    /* secateur_sparse24_tiles_needs; used by this call only; may be null */
  void* counters;     /* uint32, zero; zero again afterwards; for one stream at a time */
  int64_t workspace_bytes;
  int64_t counter_count;
  int64_t tile_rows;   /* with tile_tokens: 256 x 128, 128 x 128, 256 x 64 or 128 x 64 */
  int64_t tile_tokens;
  int64_t stages; /* of 64 columns, in flight: 2 to 8 */
  int64_t blocks; /* thread blocks, 1 to tiles * steps of 64 columns */
  int64_t waves;  /* tiles that each thread block computes whole: 0 to ceil(tiles / blocks); K of
                     the tiles that are left is split evenly */
  int64_t group;  /* row blocks whose tiles are computed together: 1 and up */
};
struct SecateurSparse24TilesNeeds {
  int64_t workspace_bytes;
  int64_t counter_count;
  int64_t shared_bytes; /* a thread block */
};
SECATEUR_API int secateur_sparse24_tiles_needs(const struct SecateurSparse24Tiles* arguments,
                                               struct SecateurSparse24TilesNeeds* needs);
SECATEUR_API int secateur_sparse24_tiles_check(const struct SecateurSparse24Tiles* arguments);
SECATEUR_API int secateur_sparse24_tiles(const struct SecateurSparse24Tiles* arguments,
                                         void* stream);

#ifdef __cplusplus
}
#endif
#endif
