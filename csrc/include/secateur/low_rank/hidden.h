// t between the two products. It stays in fp32: the second kernel adds the partial sums in order,
// keeps t in shared memory, and cuts it into three pieces that matrix instructions hold exactly, of
// 8 bits each for bf16, of 11, 11 and 2 bits in the format tf32 for fp16, whose range is too small.
#pragma once

#include "secateur/low_rank/multiply.h"

namespace secateur::low_rank {

constexpr int pieces = 3;

// t of a chunk of 128 columns: a row of 512 bytes a token. Of every 32 columns, the first four of
// each lane's eight lie before the last four, and odd rows have the two halves exchanged: no lanes
// that read or write together meet in a bank.
SECATEUR_INLINE constexpr int hidden_offset(int token, int quad) {
  const int lane = quad % 8 / 2, half = quad % 2;
  return token * hidden_row_bytes + quad / 8 * 128 + (((4 * half + lane) ^ (4 * (token % 2))) * 16);
}
// What a lane reads: columns 8 * t to 8 * t + 3 of block 0; the next four, and other blocks.
SECATEUR_INLINE constexpr int hidden_operand_offset(int token, int lane) {
  return hidden_offset(token, 2 * (lane % 4));
}
constexpr uint32_t second_half = 64;
constexpr int hidden_block_bytes = 128;

SECATEUR_DEVICE Words4 words_of(const float (&v)[4]) {
  return {{device::bits_of(v[0]), device::bits_of(v[1]), device::bits_of(v[2]),
           device::bits_of(v[3])}};
}

// Adds the partial sums of `Tokens` tokens from `token` on, `Splits` loads of each at a time.
template <int Tokens, int Splits>
SECATEUR_DEVICE void add_partials(uint32_t target, const Up& up, int64_t column, bool exists,
                                  int token, int lane) {
  const int tokens = up.output.tokens;
  const int64_t split_size = static_cast<int64_t>(tokens) * up.hidden_columns;
  const float* source = up.hidden + static_cast<int64_t>(token) * up.hidden_columns + column;
  float sum[Tokens][4] = {};
#pragma unroll 1
  for (int split = 0; split < up.splits; split += Splits) {
#pragma unroll
    for (int s = 0; s < Splits; ++s) {
#pragma unroll
      for (int m = 0; m < Tokens; ++m) {
        if (exists && split + s < up.splits && token + m < tokens) {
          device::add_partial(sum[m], source + (split + s) * split_size + m * up.hidden_columns);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < Tokens; ++m) {
    if (token + m < tokens) {
      device::store_shared16(target + hidden_offset(token + m, lane), words_of(sum[m]));
    }
  }
}

// t of all tokens for one chunk of a group's columns; zeros beyond the rank. Eight loads of a lane
// are under way together.
SECATEUR_DEVICE void load_hidden(uint32_t target, const Up& up, int group, int chunk, int lane) {
  const int rank = chunk * chunk_columns + 4 * lane;
  const int64_t column = static_cast<int64_t>(group) * up.rank + rank;
  const bool exists = rank < up.rank;
  if (up.output.tokens >= 4) {
    for (int token = 0; token < up.output.tokens; token += 4) {
      add_partials<4, 2>(target, up, column, exists, token, lane);
    }
  } else {
    for (int token = 0; token < up.output.tokens; ++token) {
      add_partials<1, 8>(target, up, column, exists, token, lane);
    }
  }
}

// Takes the leading piece off eight numbers. By truncation: it is exact, and never rounds up to
// infinity. Infinity minus itself is no remainder.
template <uint32_t Mask>
SECATEUR_DEVICE void take_piece(float (&rest)[8], uint32_t (&piece)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    piece[i] = device::bits_of(rest[i]) & Mask;
    const float left = rest[i] - device::float_of(piece[i]);
    rest[i] = left == left ? left : 0.0f;
  }
}

// One piece of t of eight tokens times the 16 x 32 weights of each row tile.
template <typename Value>
struct PieceProduct;

template <>
struct PieceProduct<Bf16> {
  static constexpr uint32_t mask = 0xFFFF0000u;
  static constexpr int instructions = 2;

  static SECATEUR_DEVICE void add(float (&sum)[4], const Weights& w, const uint32_t (&piece)[8],
                                  int i) {
    const uint32_t* four = piece + 4 * i;
    device::multiply_dense<Bf16>(sum, half_of(w, i), (four[0] >> 16) | four[1],
                                 (four[2] >> 16) | four[3]);
  }
};

template <>
struct PieceProduct<Fp16> {
  static constexpr uint32_t mask = 0xFFFFE000u;
  static constexpr int instructions = 4;

  // Columns 2 * i and 2 * i + 1 of a lane's eight, exact in fp32.
  static SECATEUR_DEVICE void add(float (&sum)[4], const Weights& w, const uint32_t (&piece)[8],
                                  int i) {
    const auto wide = [](uint32_t bits) { return device::bits_of(device::unpack<Fp16>(bits)); };
    const uint32_t upper = w.upper.word[i], lower = w.lower.word[i];
    const Words4 a{{wide(upper & 0xFFFFu), wide(lower & 0xFFFFu), wide(upper >> 16),
                    wide(lower >> 16)}};
    device::multiply_tf32(sum, a, piece[2 * i], piece[2 * i + 1]);
  }
};

// Row tiles First to First + Count - 1 of one block of 32 columns, and the tokens of one tile.
template <typename Value, int First, int Count, typename Shape>
SECATEUR_DEVICE void multiply_pieces(Sums<Shape>& sums, const Weights (&w)[Shape::row_tiles], int n,
                                     uint32_t operand) {
  float rest[8];
  const Words4 quad[2] = {device::load_shared16(operand),
                          device::load_shared16(operand ^ second_half)};
#pragma unroll
  for (int i = 0; i < 8; ++i) rest[i] = device::float_of(quad[i / 4].word[i % 4]);
#pragma unroll
  for (int p = 0; p < pieces; ++p) {
    uint32_t piece[8];
    take_piece<PieceProduct<Value>::mask>(rest, piece);
#pragma unroll
    for (int i = 0; i < PieceProduct<Value>::instructions; ++i) {
#pragma unroll
      for (int r = First; r < First + Count; ++r) {
        PieceProduct<Value>::add(sums[r][n], w[r], piece, i);
      }
    }
  }
}

// A stage of up and t. `apart`: how far t of the second row tile is from that of the first; 0 where
// they share it.
template <typename Value, typename Shape>
SECATEUR_DEVICE void multiply_up(Sums<Shape>& sums, uint32_t weights, uint32_t hidden, int apart,
                                 int blocks, int tokens, int lane) {
  const uint32_t tile = weights + operand_offset(lane / 4, lane);
  uint32_t row[Shape::token_tiles];
#pragma unroll
  for (int n = 0; n < Shape::token_tiles; ++n) {
    row[n] = hidden + hidden_operand_offset(token_of(lane, n, tokens), lane);
  }
#pragma unroll
  for (int block = 0; block < blocks_per_chunk; ++block) {
    if (block >= blocks) break;
    Weights w[Shape::row_tiles];
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) w[r] = load_weights(tile + r * tile_bytes, block);
#pragma unroll
    for (int n = 0; n < Shape::token_tiles; ++n) {
      const uint32_t operand = row[n] + block * hidden_block_bytes;
      if constexpr (Shape::row_tiles == 2) {
        if (apart != 0) {
          multiply_pieces<Value, 0, 1, Shape>(sums, w, n, operand);
          multiply_pieces<Value, 1, 1, Shape>(sums, w, n, operand + apart);
          continue;
        }
      }
      multiply_pieces<Value, 0, Shape::row_tiles, Shape>(sums, w, n, operand);
    }
  }
}

}  // namespace secateur::low_rank
