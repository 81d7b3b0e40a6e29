/* What every linear layer has: y = epilogue(x @ weight.T), sums in fp32, one rounding. */
#ifndef SECATEUR_CORE_LINEAR_H
#define SECATEUR_CORE_LINEAR_H

#include "secateur/core/status.h"

struct SecateurLinear {
  const void* x;        /* [tokens, columns], the last dimension contiguous */
  const void* bias;     /* [rows] or null */
  const void* residual; /* [tokens, rows or rows / 2] or null, the last dimension contiguous */
  void* y;              /* [tokens, rows or rows / 2], contiguous */
  int64_t x_stride;     /* elements from row to row */
  int64_t residual_stride;
  int64_t tokens;
  int64_t rows;
  int64_t columns;
  int32_t value_type; /* SecateurValueType of everything */
  int32_t gate_up;    /* row order of the weight: 0 natural, 1 gate_up */
  int32_t silu_and_mul; /* silu(gate rows) * up rows; needs gate_up */
  /* 1: programmatic dependent launch. The kernel may begin while the one before it on the stream
   * still runs, and reads nothing but weights before that has ended: the weights must be older. */
  int32_t dependent;
  int32_t device;
};

#endif
