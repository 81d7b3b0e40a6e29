// Finished sums go to y: bias, SiLU-and-multiply, residual, one rounding, stores of 16 bytes.
#pragma once

#include "secateur/device.h"
#include "secateur/output.h"
#include "secateur/shared_sums.h"
#include "secateur/wide/problem.h"
#include "secateur/wide/staging.h"
#include "secateur/write_tile.h"

namespace secateur::wide {

// A warp's sub-tiles are one of four in each of its panels.
template <typename Shape>
using Sums = WarpSums<Shape::panels, Shape::token_tiles>;

struct Eight {
  float value[8];
};

// Eight columns of a token, of which `count` exist; rows that are `chunked` have all or none.
template <typename Value>
SECATEUR_DEVICE Eight read_eight(const void* source, int64_t offset, int count, bool chunked) {
  const uint16_t* from = static_cast<const uint16_t*>(source) + offset;
  Eight eight{};
  if (chunked) {
    const Words4 words = device::load<Words4>(from);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t word = words.word[i / 2];
      eight.value[i] = device::unpack<Value>(i % 2 ? word >> 16 : word & 0xFFFFu);
    }
    return eight;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) eight.value[i] = device::unpack<Value>(device::load<uint16_t>(from + i));
  }
  return eight;
}

template <typename Value>
SECATEUR_DEVICE void write_eight(void* target, int64_t offset, int count, bool chunked,
                                 const Eight& eight) {
  uint16_t* to = static_cast<uint16_t*>(target) + offset;
  Words4 words;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words.word[i] = device::pack<Value>(eight.value[2 * i], eight.value[2 * i + 1]);
  }
  if (chunked) {
    device::store(to, words);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) {
      device::store(to + i, static_cast<uint16_t>(words.word[i / 2] >> (16 * (i % 2))));
    }
  }
}

SECATEUR_DEVICE Eight read_staged(uint32_t source) {
  const Words4 low = device::load_shared16(source), high = device::load_shared16(source + 16);
  Eight eight;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    eight.value[i] = device::as_float(low.word[i]);
    eight.value[4 + i] = device::as_float(high.word[i]);
  }
  return eight;
}

SECATEUR_DEVICE void add(Eight& sums, const Eight& more) {
#pragma unroll
  for (int i = 0; i < 8; ++i) sums.value[i] += more.value[i];
}

// Bias of the eight rows of the weight from `row`, a multiple of 8, on; zeros where there is none.
template <typename Value>
SECATEUR_DEVICE Eight read_bias(const Output& output, int64_t row) {
  if (output.bias == nullptr) return {};
  const int64_t left = output.rows - row;
  const int count = left < 8 ? static_cast<int>(left) : 8;
  return read_eight<Value>(output.bias, row, count, output.bias_chunked);
}

// Eight finished rows of the weight for one token, to eight columns of y.
template <typename Value>
SECATEUR_DEVICE void finish_eight(const Output& output, int64_t token, int64_t column,
                                  Eight& sums) {
  const int64_t left = output.columns() - column;
  const int count = left < 8 ? static_cast<int>(left) : 8;
  if (output.residual != nullptr) {
    add(sums, read_eight<Value>(output.residual, token * output.residual_stride + column, count,
                                output.chunked));
  }
  write_eight<Value>(output.y, token * output.columns() + column, count, output.chunked, sums);
}

// What is staged of a sub-tile: a lane takes one token, and both halves of its rows together. The
// lane is asked for here: what follows from it, kept from part to part, does not fit beside the
// sums.
template <typename Value>
SECATEUR_DEVICE void finish_gated(const Output& output, int64_t tile, int first_token,
                                  uint32_t staged) {
  const int lane = device::lane(), token = first_token + lane;
  if (token >= output.tokens) return;
  Eight gate = read_staged(staged + staging::offset(lane, 0));
  Eight up = read_staged(staged + staging::offset(lane, 8));
  add(gate, read_bias<Value>(output, tile * 8));
  add(up, read_bias<Value>(output, output.rows / 2 + tile * 8));
#pragma unroll
  for (int i = 0; i < 8; ++i) gate.value[i] = silu(gate.value[i]) * up.value[i];
  finish_eight<Value>(output, token, tile * 8, gate);
}

// Two neighbouring lanes take the sixteen rows of a token.
template <typename Value>
SECATEUR_DEVICE void finish_plain(const Output& output, int64_t tile, int first_token,
                                  uint32_t staged) {
  const int lane = device::lane(), half = lane % 2;
  const int64_t row = fragment24::logical_row(tile, 8 * half, output.rows, output.gate_up);
  if (row >= output.rows) return;
#pragma unroll 1
  for (int i = staging::token_of_pair(lane / 2); i < staging::tokens; i += warp_lanes / 2) {
    const int token = first_token + i;
    if (token >= output.tokens) return;
    Eight sums = read_staged(staged + staging::offset(i, 8 * half));
    add(sums, read_bias<Value>(output, row));
    finish_eight<Value>(output, token, row, sums);
  }
}

// Puts part `part` of the sums, 32 tokens of a panel, where the warp can read it by rows of y.
template <typename Shape>
SECATEUR_DEVICE void stage(const Sums<Shape>& sums, int part, uint32_t staged, int lane) {
  constexpr int width = staging::tokens / accumulator::tile_tokens;
  static_assert(Shape::token_tiles % width == 0, "whole parts");
  constexpr int parts = Shape::token_tiles / width;
  const uint32_t place[accumulator::items] = {
      staged + staging::item_offset(lane, 0), staged + staging::item_offset(lane, 1),
      staged + staging::item_offset(lane, 2), staged + staging::item_offset(lane, 3)};
  // Registers have no addresses: every part has its own code.
#pragma unroll
  for (int p = 0; p < Shape::panels * parts; ++p) {
    if (p != part) continue;
#pragma unroll
    for (int i = 0; i < width; ++i) {
#pragma unroll
      for (int j = 0; j < accumulator::items; ++j) {
        device::store_shared4(place[j] + i * staging::token_tile_bytes,
                              device::as_bits(sums[p / parts][p % parts * width + i][j]));
      }
    }
  }
}

// `tile`: the sub-tile of the first panel. `staged`: the warp's own shared memory.
template <typename Value, typename Shape>
SECATEUR_DEVICE void write(const Output& output, int64_t tile, int first_token,
                           const Sums<Shape>& sums, uint32_t staged) {
  constexpr int parts = Shape::tokens / staging::tokens;
#pragma unroll 1
  for (int part = 0; part < Shape::panels * parts; ++part) {
    const int64_t at = tile + part / parts * fragment24::tiles_per_unit;
    const int token = first_token + part % parts * staging::tokens;
    if (at * fragment24::tile_rows >= output.rows || token >= output.tokens) continue;
    stage<Shape>(sums, part, staged, device::lane());
    device::sync_warp();
    if (output.silu_and_mul) {
      finish_gated<Value>(output, at, token, staged);
    } else {
      finish_plain<Value>(output, at, token, staged);
    }
    device::sync_warp();
  }
}

}  // namespace secateur::wide
