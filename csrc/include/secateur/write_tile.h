// What happens to finished sums: bias, SiLU-and-multiply, residual, one rounding, store.
#pragma once

#include "secateur/accumulator.h"
#include "secateur/device.h"
#include "secateur/fragment24.h"
#include "secateur/output.h"

namespace secateur {

SECATEUR_DEVICE float silu(float v) {
  return v * device::reciprocal(1.0f + device::exponential(-v));
}

template <typename Value>
SECATEUR_DEVICE float bias_of(const Output& output, int64_t row) {
  if (output.bias == nullptr || row >= output.rows) return 0.0f;
  return device::unpack<Value>(
      device::load<uint16_t>(static_cast<const uint16_t*>(output.bias) + row));
}

// Where a lane reads and writes after the transposition: two neighbouring columns of one token of
// each token tile. Of the last columns of y the second may be missing.
struct Place {
  int token;
  int64_t column;
  int tokens;   // that exist
  int columns;  // of y and the residual: those before this one
  int stride;   // columns of a row of y

  SECATEUR_INLINE bool exists(int n) const {
    return column < columns && token + n * accumulator::tile_tokens < tokens;
  }
  SECATEUR_INLINE bool both() const { return column + 1 < columns; }
  SECATEUR_INLINE int64_t offset(int n, int64_t stride) const {
    return (token + n * accumulator::tile_tokens) * stride + column;
  }
};

// All loads are issued before any is used; `paired` is asked once.
template <int TokenTiles>
SECATEUR_DEVICE void read_pairs(uint32_t (&pairs)[TokenTiles], const Place& place,
                                const uint16_t* source, int64_t stride, bool paired) {
  if (paired) {
#pragma unroll
    for (int n = 0; n < TokenTiles; ++n) {
      pairs[n] = place.exists(n) ? device::load<uint32_t>(source + place.offset(n, stride)) : 0;
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < TokenTiles; ++n) {
    const uint16_t* from = source + place.offset(n, stride);
    const bool exists = place.exists(n), both = exists && place.both();
    const uint32_t low = exists ? device::load<uint16_t>(from) : 0;
    const uint32_t high = both ? device::load<uint16_t>(from + 1) : 0;
    pairs[n] = low | (high << 16);
  }
}

template <int TokenTiles>
SECATEUR_DEVICE void write_pairs(const uint32_t (&pairs)[TokenTiles], const Place& place,
                                 uint16_t* target, bool paired) {
#pragma unroll
  for (int n = 0; n < TokenTiles; ++n) {
    if (!place.exists(n)) continue;
    uint16_t* to = target + place.offset(n, place.stride);
    if (paired) {
      device::store(to, pairs[n]);
    } else {
      device::store(to, static_cast<uint16_t>(pairs[n]));
      if (place.both()) device::store(to + 1, static_cast<uint16_t>(pairs[n] >> 16));
    }
  }
}

// Eight columns of y from `column` on, but for those from `end` on, for the tokens from
// `first_token` on: `value(n, i)` is the sum of token tile n and the lane's token i of two. A lane
// brings two tokens of one column, and gets two columns of one token by transposition.
template <typename Value, int TokenTiles, typename Sum>
SECATEUR_DEVICE void write_eight_columns(const Output& output, int64_t column, int first_token,
                                         const Sum& value, int end) {
  const int lane = device::lane();
  const Place place{first_token + accumulator::transposed_token(lane),
                    column + accumulator::transposed_row(lane), output.tokens, end,
                    output.columns()};
  uint32_t pairs[TokenTiles] = {};
  if (output.residual != nullptr) {
    read_pairs(pairs, place, static_cast<const uint16_t*>(output.residual),
               output.residual_stride, output.paired);
#pragma unroll
    for (int n = 0; n < TokenTiles; ++n) pairs[n] = device::transpose8x8(pairs[n]);
#pragma unroll
    for (int n = 0; n < TokenTiles; ++n) {
      pairs[n] = device::pack<Value>(value(n, 0) + device::unpack<Value>(pairs[n] & 0xFFFFu),
                                     value(n, 1) + device::unpack<Value>(pairs[n] >> 16));
    }
  } else {
#pragma unroll
    for (int n = 0; n < TokenTiles; ++n) {
      pairs[n] = device::pack<Value>(value(n, 0), value(n, 1));
    }
  }
#pragma unroll
  for (int n = 0; n < TokenTiles; ++n) pairs[n] = device::transpose8x8(pairs[n]);
  write_pairs(pairs, place, static_cast<uint16_t*>(output.y), output.paired);
}

template <typename Value, int TokenTiles, typename Sum>
SECATEUR_DEVICE void write_eight_columns(const Output& output, int64_t column, int first_token,
                                         const Sum& value) {
  write_eight_columns<Value, TokenTiles>(output, column, first_token, value, output.columns());
}

// A warp's sums of one sub-tile of rows, for the tokens from `first_token` on.
template <typename Value, int TokenTiles>
SECATEUR_DEVICE void write_tile(const Output& output, int64_t tile, int first_token,
                                const float (&sums)[TokenTiles][accumulator::items]) {
  using fragment24::logical_row;
  if (tile * fragment24::tile_rows >= output.rows) return;  // padding to 64 rows
  const int lane = device::lane();
  const int row = accumulator::row(lane, 0);
  const int64_t upper = logical_row(tile, row, output.rows, output.gate_up);
  const int64_t lower = logical_row(tile, row + 8, output.rows, output.gate_up);
  const float upper_bias = bias_of<Value>(output, upper);
  const float lower_bias = bias_of<Value>(output, lower);
  if (output.silu_and_mul) {
    write_eight_columns<Value, TokenTiles>(output, tile * 8, first_token, [&](int n, int i) {
      return silu(sums[n][i] + upper_bias) * (sums[n][2 + i] + lower_bias);
    });
    return;
  }
  write_eight_columns<Value, TokenTiles>(output, upper - row, first_token,
                                         [&](int n, int i) { return sums[n][i] + upper_bias; });
  write_eight_columns<Value, TokenTiles>(
      output, lower - row, first_token, [&](int n, int i) { return sums[n][2 + i] + lower_bias; });
}

}  // namespace secateur
