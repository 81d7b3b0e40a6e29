// Finished sums of many rows and tokens: the epilogue of write_tile.h, with stores and loads of the
// residual of 16 bytes, no shared memory and no waiting for other warps.
//
// A patch is eight columns of y of eight tokens. Accumulators, rounded and transposed, leave a lane
// with two columns of one token of each patch; four lanes that have the same token of four patches
// exchange them, and each then holds the eight columns of one patch. Patches are grouped such that
// the four lanes write 64 bytes that follow each other, or at least whole sectors of 32 where the
// warp has the rows for that.
#pragma once

#include "secateur/device/recompute.h"
#include "secateur/write_tile.h"

namespace secateur {

// Lane t of every four (t = lane % 4) brings words w[0] to w[3], and gets word t of all four lanes.
// Its own inverse.
SECATEUR_DEVICE void exchange_in_fours(uint32_t (&w)[4]) {
  const int lane = device::lane();
#pragma unroll
  for (int bit = 1; bit <= 2; ++bit) {  // lanes that differ in this bit swap words that do
    const bool odd = (lane & bit) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int low = bit == 1 ? 2 * i : i, high = low + bit;
      const uint32_t got = device::shuffle(odd ? w[low] : w[high], lane ^ bit);
      w[low] = odd ? got : w[low];
      w[high] = odd ? w[high] : got;
    }
  }
}

// Which patch of four belongs to a lane: first column, and by how many token tiles it is later.
struct Patch {
  int64_t column;
  int64_t end;  // of the columns that it may be part of
  int tile;
};

// What has to be written of one warp: `fours` times four patches, `wide` of them side by side in y,
// the others from the following token tiles.
template <int RowTiles, int TokenTiles, bool Silu>
struct Patches {
  static constexpr int halves = Silu ? 1 : 2;  // of a row tile that have columns of their own
  static constexpr int columns = RowTiles * halves;
  static constexpr int wide = columns < 4 ? columns : 4;
  static constexpr int high = 4 / wide;
  static constexpr int across = columns / wide;
  static constexpr int fours = across * static_cast<int>(ceil_div(TokenTiles, high));
  static_assert(columns % wide == 0 && 4 % wide == 0, "1, 2 or a multiple of 4 row tiles");

  // Of patch j of four f: row tile, half, token tile (at TokenTiles and beyond it does not exist).
  static SECATEUR_INLINE constexpr int index(int f, int j) { return f % across * wide + j % wide; }
  static SECATEUR_INLINE constexpr int row_tile(int f, int j) { return index(f, j) / halves; }
  static SECATEUR_INLINE constexpr int half(int f, int j) { return index(f, j) % halves; }
  static SECATEUR_INLINE constexpr int token_tile(int f, int j) {
    return f / across * high + j / wide;
  }

  // The patch of a lane in the first four, for a warp whose first row tile is `tile`. That of a
  // later four is the same number of columns and tokens further on for all lanes.
  static SECATEUR_INLINE Patch first_patch(const Output& output, int64_t tile, int lane) {
    const int j = lane % 4;
    const bool gates = output.gate_up, up = half(0, j) != 0;
    const int64_t first = gates && up ? output.rows / 2 : 0;
    const int64_t end = gates && !up ? output.rows / 2 : output.rows;
    const int rows = gates ? 8 : 16;  // of y, a row tile, in one place
    const int64_t inner = !gates && up ? 8 : 0;
    return {first + (tile + row_tile(0, j)) * rows + inner, end, token_tile(0, j)};
  }
  static SECATEUR_INLINE constexpr int column_step(int f, bool gates) {
    return f % across * (wide / halves) * (gates ? 8 : 16);
  }
};

// One token of a patch: eight columns, of which the first `count` exist.
struct Row {
  int64_t offset;
  int count;
};

SECATEUR_DEVICE void read_row(uint32_t (&words)[4], const uint16_t* source, const Row& row,
                              bool chunked) {
  if (chunked) {
    if (row.count == 0) return;
    const Words4 read = device::load<Words4>(source + row.offset);
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = read.word[j];
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i >= row.count) break;
    const uint32_t value = device::load<uint16_t>(source + row.offset + i);
    words[i / 2] |= value << (16 * (i % 2));
  }
}

SECATEUR_DEVICE void write_row(const uint32_t (&words)[4], uint16_t* target, const Row& row,
                               bool chunked) {
  if (chunked) {
    if (row.count == 0) return;
    device::store(target + row.offset, Words4{{words[0], words[1], words[2], words[3]}});
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i >= row.count) break;
    device::store(target + row.offset + i, static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2))));
  }
}

// All patches of one warp: `value(row_tile, half, token_tile, i)` is the sum of the lane's token i
// of two.
template <typename Value, int RowTiles, int TokenTiles, bool Silu, typename Sum>
SECATEUR_DEVICE void write_patches(const Output& output, int64_t first_tile, int first_token,
                                   const Sum& value) {
  using All = Patches<RowTiles, TokenTiles, Silu>;
  constexpr int batch = 4;  // loads of the residual in flight
  const int lane = device::lane();
  const Patch patch = All::first_patch(output, first_tile, lane);
  const int first = first_token + patch.tile * accumulator::tile_tokens + lane / 4;
  const int64_t columns = output.columns();
  const auto row_of = [&](int f, int64_t stride) -> Row {
    const int64_t column = patch.column + All::column_step(f, output.gate_up);
    const int n = All::token_tile(f, 0), token = first + n * accumulator::tile_tokens;
    const bool exists = patch.tile + n < TokenTiles && token < output.tokens;
    const int64_t left = patch.end - column;
    const int count = left < 8 ? static_cast<int>(left) : 8;
    return {token * stride + column, exists && left > 0 ? count : 0};
  };
#pragma unroll
  for (int start = 0; start < All::fours; start += batch) {
    uint32_t words[batch][4] = {};
    if (output.residual != nullptr) {
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (start + b >= All::fours) continue;
        read_row(words[b], static_cast<const uint16_t*>(output.residual),
                 row_of(start + b, output.residual_stride), output.chunked);
      }
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (start + b >= All::fours) continue;
        exchange_in_fours(words[b]);
#pragma unroll
        for (int j = 0; j < 4; ++j) words[b][j] = device::transpose8x8(words[b][j]);
      }
    }
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      const int f = start + b;
      if (f >= All::fours) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int tile = All::row_tile(f, j), half = All::half(f, j), n = All::token_tile(f, j);
        if (n >= TokenTiles) continue;
        const uint32_t added = words[b][j];
        words[b][j] = device::transpose8x8(device::pack<Value>(
            value(tile, half, n, 0) + device::unpack<Value>(added & 0xFFFFu),
            value(tile, half, n, 1) + device::unpack<Value>(added >> 16)));
      }
      exchange_in_fours(words[b]);
      write_row(words[b], static_cast<uint16_t*>(output.y), row_of(f, columns), output.chunked);
    }
  }
}

// A warp's sums of neighbouring sub-tiles of rows, for the tokens from `first_token` on. What lies
// beyond y is left out.
template <typename Value, int RowTiles, int TokenTiles>
SECATEUR_DEVICE void write_block(const Output& to, int64_t first_tile, int first_token,
                                 const float (&sums)[RowTiles][TokenTiles][accumulator::items]) {
  // Sizes that follow from N would otherwise be kept in registers during the main loop.
  Output output = to;
  output.rows = device::anew(to.rows);
  const int row = accumulator::row(device::lane(), 0);
  float bias[RowTiles][2];
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t tile = first_tile + r;
      const bool exists = tile * fragment24::tile_rows < output.rows;
      const int64_t of =
          fragment24::logical_row(tile, row + 8 * half, output.rows, output.gate_up);
      bias[r][half] = exists ? bias_of<Value>(output, of) : 0.0f;
    }
  }
  if (output.silu_and_mul) {
    write_patches<Value, RowTiles, TokenTiles, true>(
        output, first_tile, first_token, [&](int r, int, int n, int i) {
          return silu(sums[r][n][i] + bias[r][0]) * (sums[r][n][2 + i] + bias[r][1]);
        });
  } else {
    write_patches<Value, RowTiles, TokenTiles, false>(
        output, first_tile, first_token, [&](int r, int half, int n, int i) {
          return sums[r][n][2 * half + i] + bias[r][half];
        });
  }
}

}  // namespace secateur
