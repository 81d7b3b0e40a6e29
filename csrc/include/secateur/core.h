/* The C interface of the library: plain pointers and sizes, no torch. Every function that can fail
 * returns 0, a negative code of SecateurError, or a positive code of the CUDA runtime;
 * secateur_error_text explains all of them. Kernels are launched on the stream that is given and
 * nothing waits for them. Pointers are to memory of `device` unless said otherwise. */
#ifndef SECATEUR_CORE_H
#define SECATEUR_CORE_H

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
  SECATEUR_SHARED_MEMORY = -14
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

/* A dense [rows, columns] of 16-bit values from fragment order. */
struct SecateurUnpack24 {
  const void* weight; /* [panels, steps, 4608] bytes */
  void* dense;        /* contiguous; 16-byte aligned if columns % 8 == 0, else 8 */
  int64_t rows;
  int64_t columns; /* divisible by 4 */
  int32_t gate_up; /* row order: 0 natural, 1 gate_up (rows divisible by 16) */
  int32_t device;
};
SECATEUR_API int secateur_unpack24_check(const struct SecateurUnpack24* arguments);
SECATEUR_API int secateur_unpack24(const struct SecateurUnpack24* arguments, void* stream);

/* y = epilogue(x @ weight.T) for 1 to 64 tokens; sums in fp32, one rounding. */
struct SecateurSparse24Skinny {
  const void* x;        /* [tokens, columns], the last dimension contiguous */
  const void* weight;   /* [panels, steps, 4608] bytes */
  const void* bias;     /* [rows] or null */
  const void* residual; /* [tokens, rows or rows / 2] or null, the last dimension contiguous */
  void* y;              /* [tokens, rows or rows / 2], contiguous */
  void* workspace;      /* secateur_sparse24_skinny_needs; used by this call only; may be null */
  void* counters;       /* uint32, zero; zero again afterwards; for one stream at a time */
  int64_t workspace_bytes;
  int64_t counter_count;
  int64_t x_stride; /* elements from row to row */
  int64_t residual_stride;
  int64_t tokens;
  int64_t rows;
  int64_t columns; /* divisible by 4 */
  int32_t value_type;
  int32_t gate_up;
  int32_t silu_and_mul; /* silu(gate rows) * up rows; needs gate_up */
  int32_t warps;        /* that multiply: 1 to 8 (4 row tiles and over 32 tokens: to 4) */
  int32_t row_tiles;    /* of 16 rows, a warp: 2 or 4; warps * row_tiles divisible by 4 */
  int32_t stages;       /* of 64 columns, in flight: 2 to 16 */
  int64_t blocks;       /* thread blocks, 1 to row blocks * steps of 64 columns */
  int32_t device;
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
