/* Codes, and what the library says of itself. */
#ifndef SECATEUR_CORE_STATUS_H
#define SECATEUR_CORE_STATUS_H

#include <stdint.h>

#define SECATEUR_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum SecateurError {
  SECATEUR_OK = 0,
  SECATEUR_NULL_POINTER = -1,
  SECATEUR_BAD_SHAPE = -2,
  SECATEUR_BAD_TOKENS = -3,
  SECATEUR_BAD_ROW_ORDER = -4,
  SECATEUR_BAD_ACTIVATION = -5,
  SECATEUR_BAD_VALUE_TYPE = -6,
  SECATEUR_BAD_TILES = -7,
  SECATEUR_BAD_STAGES = -8,
  SECATEUR_BAD_BLOCKS = -9,
  SECATEUR_SMALL_WORKSPACE = -10,
  SECATEUR_FEW_COUNTERS = -11,
  SECATEUR_MISALIGNED = -12,
  SECATEUR_BAD_STRIDE = -13,
  SECATEUR_SHARED_MEMORY = -14,
  SECATEUR_BAD_CLUSTER = -15,
  SECATEUR_NO_CLUSTERS = -16,
  SECATEUR_BAD_TOKEN_COUNT = -17,
  SECATEUR_BAD_TILE = -18,
  SECATEUR_BAD_TILE_STAGES = -19,
  SECATEUR_BAD_TILE_SCHEDULE = -20,
  SECATEUR_MISALIGNED_X = -21,
  SECATEUR_BAD_WIDE_TILE = -22,
  SECATEUR_BAD_WIDE_CLUSTER = -23,
  SECATEUR_BAD_WIDE_SCHEDULE = -24,
  SECATEUR_BAD_X_STRIDE = -25,
  SECATEUR_NEEDS_SM90 = -26,
  SECATEUR_NO_TENSOR_MAP = -27,
  SECATEUR_BAD_GROUPS = -28,
  SECATEUR_BAD_RANK = -29,
  SECATEUR_BAD_LOW_RANK_TILES = -30,
  SECATEUR_BAD_LOW_RANK_STAGES = -31,
  SECATEUR_BAD_LOW_RANK_BLOCKS = -32,
  SECATEUR_BAD_WIDE_STEPS = -33,
  SECATEUR_SMALL_WIDE_RING = -34,
  SECATEUR_BAD_LOW_RANK_BOXES = -35,
  SECATEUR_BAD_LOW_RANK_CLUSTER = -36,
  SECATEUR_BAD_LEAD = -37,
  SECATEUR_BAD_AHEAD = -38
};

enum SecateurValueType { SECATEUR_BF16 = 0, SECATEUR_FP16 = 1 };

/* Never null; the text lives as long as the library. */
SECATEUR_API const char* secateur_error_text(int code);

/* What the library was built as: the version of the package, its architectures separated by commas
 * ("sm_80,sm_90a,compute_80"), the CUDA runtime inside as 1000 * major + 10 * minor, and a
 * fingerprint of sources and compiler options. */
SECATEUR_API const char* secateur_version(void);
SECATEUR_API const char* secateur_architectures(void);
SECATEUR_API int secateur_cuda_version(void);
SECATEUR_API const char* secateur_fingerprint(void);

/* The newest CUDA version that the machine's driver supports; 0 where there is no driver. */
SECATEUR_API int secateur_driver_version(void);

/* A number for the graph capture that a stream is part of, unique in the process; 0 if it is not
 * capturing. */
SECATEUR_API int secateur_capture_id(void* stream, uint64_t* id);

/* Memory of a device that is zero when this returns, and that is never given back: outside of every
 * allocator and memory pool, for counters that outlive them. Waits for the filling. */
SECATEUR_API int secateur_zeroed_memory(int device, int64_t bytes, void** memory);

#ifdef __cplusplus
}
#endif
#endif
