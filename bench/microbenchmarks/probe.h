// What the matrix instructions make of packed units: each unit is multiplied, by the functions that
// the kernels use, with tokens that are one at one column each.
#pragma once

#include "secateur/device.h"
#include "secateur/device/wgmma.h"
#include "secateur/fragment24.h"
#include "secateur/matrix_descriptor.h"
#include "secateur/x_tile.h"

namespace micro {

namespace device = secateur::device;
namespace fragment24 = secateur::fragment24;
namespace x_tile = secateur::x_tile;

using secateur::Words4;

constexpr int warpgroup_threads = 128;
constexpr int token_tiles = 4;
constexpr int tokens = token_tiles * x_tile::tile_tokens;
constexpr int rounds = fragment24::unit_columns / tokens;
constexpr int instructions = 2;  // mma.sp, wgmma.sp
constexpr int sums_of_round = token_tiles * warpgroup_threads * 4;
constexpr int sums_of_unit = instructions * rounds * sums_of_round;

struct Probe {
  const uint8_t* units;
  float* sums;   // [unit][instruction][eight columns][thread][4]
  uint32_t one;  // of the value type
};

// A product by a warpgroup needs its tokens at a multiple of 1024 bytes.
constexpr int tile_alignment = secateur::matrix_descriptor::swizzle_bytes;
constexpr int probe_shared_bytes = x_tile::bytes(token_tiles) + tile_alignment;

// What ordinary stores wrote to shared memory is read by the tensor cores afterwards.
SECATEUR_DEVICE void publish_to_tensor_cores() {
#if !defined(SECATEUR_EMULATED)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  device::sync_block();
}

// 32 tokens, token j one at column 32 * round + j, in the order in which kernels hold x.
SECATEUR_DEVICE void write_tokens(uint32_t tile, int round, uint32_t one) {
  for (int i = device::thread(); i < tokens * x_tile::chunks; i += warpgroup_threads) {
    const int token = i / x_tile::chunks, chunk = i % x_tile::chunks;
    const int column = tokens * round + token, within = column % x_tile::chunk_columns;
    Words4 words{};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const bool here = chunk == column / x_tile::chunk_columns && w == within / 2;
      words.word[w] = here ? one << (16 * (within % 2)) : 0;
    }
    device::store_shared16(tile + x_tile::chunk_offset(token, chunk), words);
  }
  publish_to_tensor_cores();
}

SECATEUR_DEVICE void write_sums(float* target, const float (&sums)[token_tiles][4]) {
#pragma unroll
  for (int n = 0; n < token_tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      device::store(target + 4 * (n * warpgroup_threads + device::thread()) + i, sums[n][i]);
    }
  }
}

// One unit by one warpgroup; a warp has a sub-tile, for both instructions.
template <typename Value>
SECATEUR_DEVICE void probe_unit(const Probe& probe, uint32_t base) {
  const uint32_t tile = (base + tile_alignment - 1) / tile_alignment * tile_alignment;
  const int lane = device::lane();
  const uint8_t* mine = probe.units + device::block() * static_cast<int64_t>(fragment24::unit_bytes) +
                        device::thread() / 32 * fragment24::tile_bytes;
  Words4 values[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    values[i] = device::load<Words4>(mine + fragment24::value_offset(i, lane));
  }
  const auto metadata = device::load<uint32_t>(mine + fragment24::metadata_offset(lane));
  float* target = probe.sums + device::block() * static_cast<int64_t>(sums_of_unit);
  const uint64_t place = secateur::matrix_descriptor::of_tokens(tile);
  const uint32_t operand = tile + x_tile::operand_offset(lane);
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    device::sync_block();
    write_tokens(tile, round, probe.one);
    float sums[token_tiles][4] = {};
#pragma unroll
    for (int n = 0; n < token_tiles; ++n) {
      const uint32_t at = operand + n * x_tile::token_tile_bytes;
      device::multiply_sparse<Value, 0>(sums[n], values[0], device::load_matrices(at), metadata);
      device::multiply_sparse<Value, 1>(
          sums[n], values[1], device::load_matrices(at ^ x_tile::second_fragment), metadata);
    }
    write_sums(target + round * sums_of_round, sums);
    float products[token_tiles][4] = {};
    device::wgmma_fence();
    device::wgmma_sparse<Value, 0>(products, values[0], metadata, place);
    device::wgmma_sparse<Value, 1>(
        products, values[1], metadata,
        secateur::matrix_descriptor::advanced(place, x_tile::second_fragment));
    device::wgmma_commit();
    device::wgmma_wait<0>();
    device::own(products);
    write_sums(target + (rounds + round) * sums_of_round, products);
  }
}

}  // namespace micro
