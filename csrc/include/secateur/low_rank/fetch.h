// Copies into a stage, by the lanes of the warp that will read it.
//
// cp.async on all architectures: rows of a factor are row-major, and a stage holds but 256 bytes of
// each, which it copies, zero-fills and swizzles in one instruction for two rows.
#pragma once

#include "secateur/device.h"
#include "secateur/low_rank/problem.h"

namespace secateur::low_rank {

constexpr int piece_bytes = 16;
constexpr int piece_columns = 8;
constexpr int row_pieces = row_bytes / piece_bytes;
constexpr int rows_at_once = warp_lanes / row_pieces;
static_assert(rows_at_once == 2, "half a warp a row");

// Piece p of a row lies at p ^ (row % 8), so that ldmatrix, which reads one piece of eight
// neighbouring rows at a time, touches every bank once.
SECATEUR_INLINE constexpr int piece_offset(int row, int piece) {
  return row * row_bytes + ((piece ^ (row % 8)) * piece_bytes);
}

// Eight columns value by value, where rows are not aligned.
SECATEUR_DEVICE Words4 read_piece(const uint16_t* source, int valid_bytes) {
  uint32_t value[piece_columns];
#pragma unroll
  for (int i = 0; i < piece_columns; ++i) {
    value[i] = 2 * i < valid_bytes ? device::load<uint16_t>(source + i) : 0;
  }
  Words4 words;
#pragma unroll
  for (int i = 0; i < 4; ++i) words.word[i] = value[2 * i] | (value[2 * i + 1] << 16);
  return words;
}

SECATEUR_DEVICE void copy_piece(uint32_t target, const uint16_t* source, int valid, bool aligned) {
  if (aligned) {
    device::copy16(target, source, valid);
  } else {
    device::store_shared16(target, read_piece(source, valid));
  }
}

// A matrix of 16-bit values [.., columns] of which chunks of 128 columns are read.
struct Matrix {
  const void* data;
  int64_t stride;  // elements from row to row
  int columns;
  bool aligned;  // rows start at multiples of 16 bytes
};

// Rows first to first + 15 of a weight; zeros beyond its columns and from row `end` on.
SECATEUR_DEVICE void fetch_tile(uint32_t target, const Matrix& weight, int chunk, int first,
                                int end, int lane) {
  const int row = lane / row_pieces, piece = lane % row_pieces;
  const int column = chunk * chunk_columns + piece * piece_columns;
  const uint16_t* source =
      static_cast<const uint16_t*>(weight.data) + (first + row) * weight.stride + column;
  const uint32_t place = target + piece_offset(row, piece);
  // Rows follow each other by two: the exchange of pieces differs in two bits.
  const auto place_of = [&](int i) {
    return (place ^ static_cast<uint32_t>(i % 8 * piece_bytes)) + i * row_bytes;
  };
  const bool whole = first + tile_rows <= end && (chunk + 1) * chunk_columns <= weight.columns;
  if (whole && weight.aligned) {
    const int64_t step = rows_at_once * weight.stride;
#pragma unroll
    for (int i = 0; i < tile_rows; i += rows_at_once) {
      device::copy16(place_of(i), source, piece_bytes);
      source += step;
    }
    return;
  }
  const int valid = x_tile::valid_bytes(column, weight.columns);
#pragma unroll 1
  for (int i = 0; i < tile_rows; i += rows_at_once) {
    const bool exists = first + row + i < end && valid > 0;
    const uint16_t* from =
        exists ? source + i * weight.stride : static_cast<const uint16_t*>(weight.data);
    copy_piece(place_of(i), from, exists ? valid : 0, weight.aligned);
  }
}

// x of all tokens, for 128 columns. Tokens that do not exist are not written.
SECATEUR_DEVICE void fetch_tokens(uint32_t target, const Matrix& x, int tokens, int chunk,
                                  int lane) {
  const int piece = lane % row_pieces;
  const int column = chunk * chunk_columns + piece * piece_columns;
  const int valid = x_tile::valid_bytes(column, x.columns);
  const uint16_t* source = static_cast<const uint16_t*>(x.data);
#pragma unroll 1
  for (int token = lane / row_pieces; token < tokens; token += rows_at_once) {
    copy_piece(target + piece_offset(token, piece),
               valid > 0 ? source + token * x.stride + column : source, valid, x.aligned);
  }
}

// The same in tiles of 64 columns as mma.sp takes them.
template <int TokenTiles>
SECATEUR_DEVICE void fetch_sparse_tokens(uint32_t target, const Matrix& x, int tokens, int chunk,
                                         int lane) {
  const int step = lane / x_tile::chunks % chunk_steps, piece = lane % x_tile::chunks;
  const int column = chunk * chunk_columns + step * x_tile::columns + piece * piece_columns;
  const int valid = x_tile::valid_bytes(column, x.columns);
  const uint16_t* source = static_cast<const uint16_t*>(x.data);
#pragma unroll 1
  for (int token = lane / row_pieces; token < tokens; token += rows_at_once) {
    copy_piece(target + step * x_tile::bytes(TokenTiles) + x_tile::chunk_offset(token, piece),
               valid > 0 ? source + token * x.stride + column : source, valid, x.aligned);
  }
}

// Packed sub-tiles `tile` (one for each r) and two steps each; those beyond the last step are not
// written.
template <int RowTiles>
SECATEUR_DEVICE void fetch_sparse_weights(uint32_t target, const uint8_t* weight,
                                          const int64_t (&tile)[RowTiles], int chunk, int steps,
                                          int lane) {
  using namespace fragment24;
  constexpr int pieces = fragment24::tile_bytes / piece_bytes;
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
#pragma unroll 1
    for (int s = 0; s < chunk_steps && chunk * chunk_steps + s < steps; ++s) {
      const uint8_t* source =
          weight + unit_offset(tile[r] / tiles_per_unit, chunk * chunk_steps + s, steps) +
          tile[r] % tiles_per_unit * fragment24::tile_bytes;
      const uint32_t place = target + (r * chunk_steps + s) * fragment24::tile_bytes;
      for (int piece = lane; piece < pieces; piece += warp_lanes) {
        device::copy16(place + piece * piece_bytes, source + piece * piece_bytes, piece_bytes);
      }
    }
  }
}

// Every lane's arrival at a stage that is filled.
SECATEUR_DEVICE void announce(uint32_t full, bool by_copies_only) {
  if (by_copies_only) {
    device::barrier_arrive_after_copies(full);
  } else {
    // Plain stores: only a plain arrival publishes them.
    device::wait_for_copies();
    device::barrier_arrive(full);
  }
}

}  // namespace secateur::low_rank
