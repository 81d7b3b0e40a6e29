// The arithmetic of wgmma.mma_async.sp with 16-bit values: its operand in shared memory, found by
// the matrix descriptor, and a row of its sparse operand.
#pragma once

#include <cstring>
#include <vector>

#include "emulated/device.h"
#include "emulated/machine.h"

namespace secateur::device {

inline float value_of(uint16_t bits, bool bf16) {
  return bf16 ? unpack<Bf16>(bits) : unpack<Fp16>(bits);
}

// Element (k, n) of B, at [k * tokens + n]. Descriptor: bits 0-13 start address, 16-29 leading and
// 32-45 stride offset, all in units of 16 bytes, 49-51 base offset, 62-63 swizzle (1: 128 bytes).
// In that mode, with K contiguous, eight columns (n) of 128 bytes make a repetition of 1024 bytes,
// the next ones follow at the stride offset, and bits 4-6 of an address are combined with bits 7-9.
inline std::vector<float> read_tokens(Machine& machine, int rank, uint64_t descriptor, int tokens,
                                      bool bf16) {
  const auto field = [&](int low, int bits) { return (descriptor >> low) & ((1ull << bits) - 1); };
  if (field(62, 2) != 1) machine.fail("matrix descriptor: expected the 128-byte swizzle");
  if (field(49, 3) != 0) machine.fail("matrix descriptor: expected base offset 0");
  if (field(14, 2) || field(30, 2) || field(46, 3) || field(52, 10)) {
    machine.fail("matrix descriptor: a reserved bit is set");
  }
  const uint32_t start = static_cast<uint32_t>(field(0, 14)) << 4;
  const uint32_t stride = static_cast<uint32_t>(field(32, 14)) << 4;
  if ((start & ~127u) % 1024 != 0) {
    machine.fail("matrix descriptor: the repetition of the swizzle does not start at 1024 bytes");
  }
  if (start % 128 > 64) machine.fail("matrix descriptor: 32 columns leave the 128 bytes");
  std::vector<float> b(32 * tokens);
  for (int n = 0; n < tokens; ++n) {
    for (int k = 0; k < 32; k += 8) {
      uint32_t address = start + n / 8 * stride + n % 8 * 128 + 2 * k;
      address ^= ((address >> 7) & 7) << 4;
      const uint8_t* chunk = machine.shared(emulation::window(rank) + address, 16);
      for (int i = 0; i < 8; ++i) {
        uint16_t bits;
        std::memcpy(&bits, chunk + 2 * i, 2);
        if (bits == 0xFFFF) machine.fail("wgmma: reads tokens that have not arrived");
        b[(k + i) * tokens + n] = value_of(bits, bf16);
      }
    }
  }
  return b;
}

// sums[n] += A[row] @ B for one of the sixteen rows of a warp. Kept column c of row r is in lane
// 4 * (r % 8) + c % 8 / 2, register r / 8 + 2 * (c / 8), half c % 2. Its two index bits are in the
// metadata of lane 4 * (r % 8) + 2 * selector + c / 8, low half for r < 8.
template <typename Lanes>
void add_sparse_row(Machine& machine, int row, int selector, bool bf16, const Lanes* lanes,
                    const std::vector<float>& b, std::vector<float>& sums) {
  const int quad = 4 * (row % 8);
  const size_t tokens = sums.size();
  int former = -1;
  for (int kept = 0; kept < 16; ++kept) {
    const uint32_t word = *lanes[quad + 2 * selector + kept / 8].metadata;
    const int index = (word >> (16 * (row / 8)) >> (2 * (kept % 8))) & 3;
    if (kept % 2 == 1 && index <= former) machine.fail("wgmma: metadata is not ordered");
    former = index;
    const uint32_t pair = lanes[quad + kept % 8 / 2].values->word[row / 8 + 2 * (kept / 8)];
    const float value = value_of(static_cast<uint16_t>(kept % 2 ? pair >> 16 : pair), bf16);
    const float* column = &b[(4 * (kept / 2) + index) * tokens];
    for (size_t n = 0; n < tokens; ++n) sums[n] += value * column[n];
  }
}

}  // namespace secateur::device
