// From the C interface's description of a linear layer to the kernels', with all checks of it that
// need no device.
#pragma once

#include "secateur/core/linear.h"
#include "secateur/output.h"

namespace secateur {

inline bool aligned(const void* pointer, int bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Whether rows of y and residual start at multiples of `bytes`.
inline bool output_is_aligned(const SecateurLinear& a, int columns, int bytes) {
  const auto fits = [bytes](const void* rows, int64_t stride) {
    return aligned(rows, bytes) && 2 * stride % bytes == 0;
  };
  return fits(a.y, columns) && (a.residual == nullptr || fits(a.residual, a.residual_stride));
}

inline Output output_of(const SecateurLinear& a) {
  Output o{};
  o.bias = a.bias;
  o.residual = a.residual;
  o.y = a.y;
  o.residual_stride = a.residual_stride;
  o.tokens = static_cast<int>(a.tokens);
  o.rows = static_cast<int>(a.rows);
  o.gate_up = a.gate_up != 0;
  o.silu_and_mul = a.silu_and_mul != 0;
  o.paired = output_is_aligned(a, o.columns(), 4);
  o.chunked = output_is_aligned(a, o.columns(), 16);
  return o;
}

// Steps or stages asked for into the L2 cache: far more than it holds.
constexpr int max_ahead = 1024;

// Groups of eight tokens that are computed for few tokens.
inline int token_tiles(int64_t tokens) {
  return tokens <= 8 ? 1 : tokens <= 16 ? 2 : tokens <= 32 ? 4 : 8;
}

// Whether rows of x start at multiples of 16 bytes.
inline bool x_is_aligned(const SecateurLinear& a) {
  return aligned(a.x, 16) && (a.tokens == 1 || a.x_stride % 8 == 0);
}

// `column_step`: what columns must be a multiple of.
inline int check_shape(const SecateurLinear& a, int column_step, int64_t max_tokens) {
  if (a.rows < 1 || a.columns < column_step || a.columns % column_step != 0 ||
      a.rows > max_size || a.columns > max_size) {
    return SECATEUR_BAD_SHAPE;
  }
  if (a.tokens < 1 || a.tokens > max_tokens) return SECATEUR_BAD_TOKENS;
  if (a.gate_up && a.rows % 16 != 0) return SECATEUR_BAD_ROW_ORDER;
  if (a.silu_and_mul && !a.gate_up) return SECATEUR_BAD_ACTIVATION;
  if (a.value_type != SECATEUR_BF16 && a.value_type != SECATEUR_FP16) {
    return SECATEUR_BAD_VALUE_TYPE;
  }
  return SECATEUR_OK;
}

inline int check_pointers(const SecateurLinear& a) {
  if (a.x == nullptr || a.y == nullptr) return SECATEUR_NULL_POINTER;
  if (!aligned(a.x, 2) || !aligned(a.y, 2) || !aligned(a.bias, 2) || !aligned(a.residual, 2)) {
    return SECATEUR_MISALIGNED;
  }
  // Rows may overlap: they are only read.
  return a.x_stride < 0 || a.residual_stride < 0 ? SECATEUR_BAD_STRIDE : SECATEUR_OK;
}

}  // namespace secateur
