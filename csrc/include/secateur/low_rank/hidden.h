// t between the two products. It stays in fp32: the second kernel adds the partial sums in order,
// keeps t in shared memory, and cuts it into three pieces that matrix instructions hold exactly, of
// 8 bits each for bf16, of 11, 11 and 2 bits in the format tf32 for fp16, whose range is too small.
#pragma once

#include "secateur/low_rank/multiply.h"

namespace secateur::low_rank {

constexpr int pieces = 3;

// t of a chunk of 128 columns: a row of 512 bytes a token. Of every 32 columns, lane 4 * q + t of
// the instruction takes two neighbours of each eight, 8 * p + 2 * t: they lie together, those of p
// = 0 and 1 in the first half of 128 bytes, the others in the second, odd tokens with the halves
// exchanged.
SECATEUR_INLINE constexpr int hidden_offset(int token, int column) {
  const int pair = column / 8 % 4, lane = column / 2 % 4;
  return token * hidden_row_bytes + column / 32 * 128 +
         (((4 * (pair / 2) + lane) ^ (4 * (token % 2))) * 16) + pair % 2 * 8;
}
// Where a lane finds its values of block 0: the first four, the other four, those of other blocks.
SECATEUR_INLINE constexpr int hidden_operand_offset(int token, int lane) {
  return hidden_offset(token, 2 * (lane % 4));
}
constexpr uint32_t second_half = 64;
constexpr int hidden_block_bytes = 128;

SECATEUR_DEVICE bool finite(float v) { return v - v == 0.0f; }

// Adds the partial sums of `Tokens` tokens from `token` on in the order of splits, `Splits` loads
// of each under way together; 0 stands for a single sum, which needs no adding.
template <int Tokens, int Splits>
SECATEUR_DEVICE void read_partials(float (&sum)[Tokens][4], const Up& up, const float* source,
                                   int token) {
  const int tokens = up.output.tokens;
  const int64_t split_size = static_cast<int64_t>(tokens) * up.hidden_columns;
  if constexpr (Splits == 0) {
#pragma unroll
    for (int m = 0; m < Tokens; ++m) {
      const int row = token + m < tokens ? token + m : token;
      device::load_partial(sum[m], source + static_cast<int64_t>(row) * up.hidden_columns);
    }
  } else {
#pragma unroll
    for (int m = 0; m < Tokens; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[m][i] = 0.0f;
    }
#pragma unroll 1
    for (int split = 0; split < up.splits; split += Splits) {
      float v[Splits][Tokens][4];
#pragma unroll
      for (int s = 0; s < Splits; ++s) {
        const int slot = split + s < up.splits ? split + s : split;
#pragma unroll
        for (int m = 0; m < Tokens; ++m) {
          const int row = token + m < tokens ? token + m : token;
          device::load_partial(v[s][m], source + slot * split_size +
                                            static_cast<int64_t>(row) * up.hidden_columns);
        }
      }
#pragma unroll
      for (int s = 0; s < Splits; ++s) {
#pragma unroll
        for (int m = 0; m < Tokens; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[m][i] += split + s < up.splits ? v[s][m][i] : 0.0f;
        }
      }
    }
  }
}

// Puts t of `Tokens` tokens into its place. Whether it is finite everywhere.
template <int Tokens, int Splits>
SECATEUR_DEVICE bool add_partials(uint32_t target, const Up& up, int group, int chunk, int token,
                                  int lane) {
  const int tokens = up.output.tokens, rank = chunk * chunk_columns + 4 * lane;
  const bool exists = rank < up.rank;
  float sum[Tokens][4];
  read_partials<Tokens, Splits>(
      sum, up, up.hidden + static_cast<int64_t>(group) * up.rank + (exists ? rank : 0), token);
  // Of tokens that do not exist, which read another's, too: were it asked for token by token, the
  // compiler would load them one after the other.
  bool all_finite = true;
#pragma unroll
  for (int m = 0; m < Tokens; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!exists) sum[m][i] = 0.0f;
      all_finite = all_finite & finite(sum[m][i]);
    }
  }
#pragma unroll
  for (int m = 0; m < Tokens; ++m) {
    if (token + m >= tokens) break;
    const float(&v)[4] = sum[m];
    const uint32_t place = target + hidden_offset(token + m, 4 * lane);
    device::store_shared8(place, device::as_bits(v[0]), device::as_bits(v[1]));
    device::store_shared8(place + 16, device::as_bits(v[2]), device::as_bits(v[3]));
  }
  return all_finite;
}

// t of all tokens for one chunk of a group's columns; zeros beyond the rank. Up to eight loads of a
// lane are under way together. Whether what the lane added is finite.
SECATEUR_DEVICE bool load_hidden(uint32_t target, const Up& up, int group, int chunk, int lane) {
  bool all_finite = true;
  int token = 0;
#pragma unroll 1
  while (token < up.output.tokens) {
    const int left = up.output.tokens - token;
    bool finite = true;
    if (up.splits == 1 && left > 4) {
      finite = add_partials<8, 0>(target, up, group, chunk, token, lane);
      token += 8;
    } else if (up.splits == 1) {
      finite = add_partials<4, 0>(target, up, group, chunk, token, lane);
      token += 4;
    } else if (left > 1) {
      finite = add_partials<4, 2>(target, up, group, chunk, token, lane);
      token += 4;
    } else {
      finite = add_partials<1, 8>(target, up, group, chunk, token, lane);
      ++token;
    }
    all_finite = finite && all_finite;
  }
  return all_finite;
}

// Takes the leading piece off eight numbers. By truncation: it is exact, and never rounds up to
// infinity. Infinity minus itself is no remainder: where there may be one, `Guard` asks.
template <uint32_t Mask, bool Guard>
SECATEUR_DEVICE void take_piece(float (&rest)[8], uint32_t (&piece)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    piece[i] = device::as_bits(rest[i]) & Mask;
    const float left = rest[i] - device::as_float(piece[i]);
    rest[i] = !Guard || left == left ? left : 0.0f;
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
    device::multiply_dense<Bf16>(sum, w.half[i], (four[0] >> 16) | four[1],
                                 (four[2] >> 16) | four[3]);
  }
};

template <>
struct PieceProduct<Fp16> {
  static constexpr uint32_t mask = 0xFFFFE000u;
  static constexpr int instructions = 4;

  // Two neighbouring columns of a lane are columns t and t + 4 of the instruction.
  static SECATEUR_DEVICE void add(float (&sum)[4], const Weights& w, const uint32_t (&piece)[8],
                                  int i) {
    const auto wide = [](uint32_t bits) { return device::as_bits(device::unpack<Fp16>(bits)); };
    const uint32_t upper = w.half[i / 2].word[i % 2 * 2], lower = w.half[i / 2].word[i % 2 * 2 + 1];
    const Words4 a{{wide(upper & 0xFFFFu), wide(lower & 0xFFFFu), wide(upper >> 16),
                    wide(lower >> 16)}};
    device::multiply_tf32(sum, a, piece[2 * i], piece[2 * i + 1]);
  }
};

// Row tiles First to First + Count - 1 of one block of 32 columns, and the tokens of one tile.
template <typename Value, bool Guard, int First, int Count, typename Shape>
SECATEUR_DEVICE void multiply_pieces(Sums<Shape>& sums, const Weights (&w)[Shape::row_tiles], int n,
                                     uint32_t operand) {
  float rest[8];
  const Words4 quad[2] = {device::load_shared16(operand),
                          device::load_shared16(operand ^ second_half)};
#pragma unroll
  for (int i = 0; i < 8; ++i) rest[i] = device::as_float(quad[i / 4].word[i % 4]);
#pragma unroll
  for (int p = 0; p < pieces; ++p) {
    uint32_t piece[8];
    take_piece<PieceProduct<Value>::mask, Guard>(rest, piece);
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
// they share it. `Guard`: t is not finite everywhere.
template <typename Value, bool Guard, typename Shape>
SECATEUR_DEVICE void multiply_up(Sums<Shape>& sums, uint32_t weights, uint32_t hidden, int apart,
                                 int blocks, int tokens, int lane) {
  const uint32_t tile = weights + weights_offset(lane);
  uint32_t row[Shape::token_tiles];
#pragma unroll
  for (int n = 0; n < Shape::token_tiles; ++n) {
    row[n] = hidden + hidden_operand_offset(token_of(lane / 4, n, tokens), lane);
  }
#pragma unroll(unrolled_blocks<Shape>)
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
          multiply_pieces<Value, Guard, 0, 1, Shape>(sums, w, n, operand);
          multiply_pieces<Value, Guard, 1, 1, Shape>(sums, w, n, operand + apart);
          continue;
        }
      }
      multiply_pieces<Value, Guard, 0, Shape::row_tiles, Shape>(sums, w, n, operand);
    }
  }
}

}  // namespace secateur::low_rank
