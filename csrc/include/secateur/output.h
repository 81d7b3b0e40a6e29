// Where the results of a linear layer go.
#pragma once

#include "secateur/common.h"

namespace secateur {

// Where results go, and what is added to them.
struct Output {
  const void* bias;      // [rows] or null
  const void* residual;  // [tokens, columns()] or null, the last dimension contiguous
  void* y;               // [tokens, columns()], contiguous
  int64_t residual_stride;
  int tokens;
  int rows;           // of the weight
  bool gate_up;       // row order of the weight
  bool silu_and_mul;  // needs gate_up
  bool paired;        // rows of y and residual start at multiples of 4 bytes
  bool chunked;       // of 16 bytes

  SECATEUR_INLINE constexpr int columns() const { return output_columns(rows, silu_and_mul); }
};

}  // namespace secateur
