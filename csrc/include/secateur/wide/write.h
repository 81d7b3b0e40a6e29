// Finished sums go to y: bias, SiLU-and-multiply, residual, one rounding, stores of 16 bytes. All
// but the stores is done where the sums are, in registers: what is staged are 16-bit results. A
// residual comes the same way back.
#pragma once

#include "secateur/device.h"
#include "secateur/output.h"
#include "secateur/warp_sums.h"
#include "secateur/wide/problem.h"
#include "secateur/wide/staging.h"
#include "secateur/write_tile.h"

namespace secateur::wide {

// A warp's sub-tiles are one of four in each of its panels.
template <typename Shape>
using Sums = WarpSums<Shape::panels, Shape::token_tiles>;

// What a lane moves of y and of the residual: eight columns of a token in each round.
template <bool Gated>
struct Columns {
  int token;   // in round 0
  int column;  // the first of the eight
  int tokens;  // that exist, from that of round 0 on; none where the columns do not
  int count;   // of the eight columns, that exist

  SECATEUR_DEVICE Columns(const Output& output, int64_t tile, int first_token) {
    const int lane = device::lane(), row = 8 * staging::half(Gated, lane);
    token = first_token + staging::token(Gated, lane);
    column = static_cast<int>(
        Gated ? tile * 8 : fragment24::logical_row(tile, row, output.rows, output.gate_up));
    const int left = output.columns() - column;
    tokens = left > 0 ? output.tokens - token : 0;
    count = left < 8 ? left : 8;
  }
  SECATEUR_DEVICE bool exist(int round) const {
    return round * staging::round_tokens(Gated) < tokens;
  }
  // Of round 0, in rows `stride` apart.
  SECATEUR_DEVICE int64_t offset(int64_t stride) const { return token * stride + column; }
};

// One by one, where rows do not start at multiples of 16 bytes.
SECATEUR_DEVICE void write_some(uint16_t* to, int count, const Words4& words) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) {
      device::store(to + i, static_cast<uint16_t>(words.word[i / 2] >> (16 * (i % 2))));
    }
  }
}
SECATEUR_DEVICE Words4 read_some(const uint16_t* from, int count) {
  Words4 words{};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) {
      const uint32_t bits = device::load<uint16_t>(from + i);
      words.word[i / 2] |= bits << (16 * (i % 2));
    }
  }
  return words;
}

// Two values of a lane in matrix `i` of a round.
template <bool Gated, int TokenTiles>
SECATEUR_DEVICE float* values_of(float (&sums)[TokenTiles][accumulator::items], int round, int i) {
  return Gated ? sums[4 * round + i] : sums[2 * round + i / 2] + i % 2 * 2;
}

// Adds what has been staged of the rounds from `first` on. `source`: the lane's row of a matrix.
template <typename Value, bool Gated, int Rounds, int TokenTiles>
SECATEUR_DEVICE void add_staged(float (&sums)[TokenTiles][accumulator::items], int first,
                                uint32_t source) {
#pragma unroll
  for (int round = 0; round < Rounds; ++round) {
    const Words4 pairs = device::load_transposed_matrices(source + round * staging::round_bytes);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* values = values_of<Gated>(sums, first + round, i);
      values[0] += device::unpack<Value>(pairs.word[i] & 0xFFFFu);
      values[1] += device::unpack<Value>(pairs.word[i] >> 16);
    }
  }
}

template <typename Value, bool Gated, int Rounds, int TokenTiles>
SECATEUR_DEVICE void stage(float (&sums)[TokenTiles][accumulator::items], int first,
                           uint32_t target) {
#pragma unroll
  for (int round = 0; round < Rounds; ++round) {
    Words4 pairs;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* values = values_of<Gated>(sums, first + round, i);
      pairs.word[i] = device::pack<Value>(values[0], values[1]);
    }
    device::store_transposed_matrices(target + round * staging::round_bytes, pairs);
  }
}

// A sub-tile's results, which stand where the first sums of each token did, get the residual. Its
// rounds are read ahead by as many as are staged together.
template <typename Value, bool Gated, bool Chunked, int TokenTiles>
SECATEUR_DEVICE void add_residual(const Output& output, const Columns<Gated>& columns,
                                  float (&sums)[TokenTiles][accumulator::items],
                                  uint32_t staged) {
  constexpr int all = TokenTiles * accumulator::tile_tokens / staging::round_tokens(Gated);
  constexpr int rounds = staging::rounds_together(all);
  const uint32_t rows = staged + staging::row_offset(Gated, device::lane());
  const uint32_t matrix_rows = staged + staging::matrix_row_offset(Gated, device::lane());
  const int64_t stride = output.residual_stride * staging::round_tokens(Gated);
  const uint16_t* from =
      static_cast<const uint16_t*>(output.residual) + columns.offset(output.residual_stride);
  Words4 ahead[rounds];
  const auto read = [&](int first) {
#pragma unroll
    for (int i = 0; i < rounds; ++i, from += stride) {
      ahead[i] = columns.exist(first + i) ? device::load<Words4>(from) : Words4{};
    }
  };
  if (Chunked) read(0);
#pragma unroll
  for (int first = 0; first < all; first += rounds) {
    if (Chunked) {
#pragma unroll
      for (int i = 0; i < rounds; ++i) {
        device::store_shared16(rows + i * staging::round_bytes, ahead[i]);
      }
      if (first + rounds < all) read(first + rounds);
    } else {
#pragma unroll 1
      for (int i = 0; i < rounds; ++i, from += stride) {
        const int count = columns.exist(first + i) ? columns.count : 0;
        device::store_shared16(rows + i * staging::round_bytes, read_some(from, count));
      }
    }
    device::sync_warp();
    add_staged<Value, Gated, rounds>(sums, first, matrix_rows);
    device::sync_warp();
  }
}

// A sub-tile's results are rounded, and go to y.
template <typename Value, bool Gated, bool Chunked, int TokenTiles>
SECATEUR_DEVICE void write_results(const Output& output, const Columns<Gated>& columns,
                                   float (&sums)[TokenTiles][accumulator::items],
                                   uint32_t staged) {
  constexpr int all = TokenTiles * accumulator::tile_tokens / staging::round_tokens(Gated);
  constexpr int rounds = staging::rounds_together(all);
  const uint32_t rows = staged + staging::row_offset(Gated, device::lane());
  const uint32_t matrix_rows = staged + staging::matrix_row_offset(Gated, device::lane());
  const int64_t stride = int64_t{output.columns()} * staging::round_tokens(Gated);
  uint16_t* to = static_cast<uint16_t*>(output.y) + columns.offset(output.columns());
#pragma unroll
  for (int first = 0; first < all; first += rounds) {
    stage<Value, Gated, rounds>(sums, first, matrix_rows);
    device::sync_warp();
    if (Chunked) {
      Words4 words[rounds];
#pragma unroll
      for (int i = 0; i < rounds; ++i) {
        words[i] = device::load_shared16(rows + i * staging::round_bytes);
      }
#pragma unroll
      for (int i = 0; i < rounds; ++i, to += stride) {
        if (columns.exist(first + i)) device::store(to, words[i]);
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < rounds; ++i, to += stride) {
        const int count = columns.exist(first + i) ? columns.count : 0;
        write_some(to, count, device::load_shared16(rows + i * staging::round_bytes));
      }
    }
    device::sync_warp();
  }
}

template <typename Value, bool Gated, int TokenTiles>
SECATEUR_DEVICE void finish(const Output& output, int64_t tile, int first_token,
                            float (&sums)[TokenTiles][accumulator::items], uint32_t staged) {
  const Columns<Gated> columns(output, tile, first_token);
  if (output.chunked) {
    if (output.residual != nullptr) {
      add_residual<Value, Gated, true>(output, columns, sums, staged);
    }
    write_results<Value, Gated, true>(output, columns, sums, staged);
  } else {
    if (output.residual != nullptr) {
      add_residual<Value, Gated, false>(output, columns, sums, staged);
    }
    write_results<Value, Gated, false>(output, columns, sums, staged);
  }
}

template <typename Value, int TokenTiles>
SECATEUR_DEVICE void add_bias(const Output& output, int64_t tile,
                              float (&sums)[TokenTiles][accumulator::items]) {
  using fragment24::logical_row;
  const int row = accumulator::row(device::lane(), 0);
  const float upper = bias_of<Value>(
      output, logical_row(tile, row, output.rows, output.gate_up));
  const float lower = bias_of<Value>(
      output, logical_row(tile, row + 8, output.rows, output.gate_up));
#pragma unroll
  for (int n = 0; n < TokenTiles; ++n) {
    sums[n][0] += upper, sums[n][1] += upper;
    sums[n][2] += lower, sums[n][3] += lower;
  }
}

// `tile`: the sub-tile of the first panel. `staged`: the warp's own shared memory. The sums are
// used up.
template <typename Value, typename Shape>
SECATEUR_DEVICE void write(const Output& output, int64_t tile, int first_token, Sums<Shape>& sums,
                           uint32_t staged) {
#pragma unroll
  for (int p = 0; p < Shape::panels; ++p) {
    const int64_t at = tile + p * fragment24::tiles_per_unit;
    if (at * fragment24::tile_rows >= output.rows) continue;
    if (output.bias != nullptr) add_bias<Value>(output, at, sums[p]);
    if (!output.silu_and_mul) {
      finish<Value, false>(output, at, first_token, sums[p], staged);
      continue;
    }
#pragma unroll
    for (int n = 0; n < Shape::token_tiles; ++n) {
      sums[p][n][0] = silu(sums[p][n][0]) * sums[p][n][2];
      sums[p][n][1] = silu(sums[p][n][1]) * sums[p][n][3];
    }
    finish<Value, true>(output, at, first_token, sums[p], staged);
  }
}

}  // namespace secateur::wide
