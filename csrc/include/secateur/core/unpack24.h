/* A dense weight from a packed one. */
#ifndef SECATEUR_CORE_UNPACK24_H
#define SECATEUR_CORE_UNPACK24_H

#include "secateur/core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

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

#ifdef __cplusplus
}
#endif
#endif
