// secateur/device/mma.h on a CPU, from the fragment tables of the PTX manual.
#pragma once

#include "emulated/device.h"

namespace secateur::device {

inline bool any(bool v) {
  return machine().collective<char, char>("any", v, [](const char* in, char* out) {
    char found = 0;
    for (int i = 0; i < 32; ++i) found |= in[i];
    for (int i = 0; i < 32; ++i) out[i] = found;
  });
}

inline void store_shared8(uint32_t target, uint32_t low, uint32_t high) {
  const uint32_t words[2] = {low, high};
  std::memcpy(machine().shared(target, 8), words, 8);
  machine().wrote(target, 8);
}

inline void load_partial(float (&v)[4], const float* source) {
  machine().check_global(source, 16, false);
  if (reinterpret_cast<uintptr_t>(source) % 16) machine().fail("global: misaligned access");
  std::memcpy(v, source, 16);
}

struct DenseMmaIn {
  float sum[4];
  Words4 a;
  uint32_t b[2];
};

// Sums of an m16n8 instruction in the order of k; C as for mma.sp.
template <int K>
void dense_sums(const DenseMmaIn* lanes, const float (&a)[16][K], const float (&b)[K][8],
                MmaOut* results) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      float total = lanes[lane].sum[i];
      for (int k = 0; k < K; ++k) total += a[row][k] * b[k][column];
      results[lane].sum[i] = total;
    }
  }
}

// mma.m16n8k16, 16-bit values. A: register r, item e: row q + 8 * (r % 2), column 2t + e + 8 * (r /
// 2). B: register r, item e: row 2t + e + 8r, column q.
template <typename Value>
void multiply_dense(float (&sum)[4], Words4 a, uint32_t b0, uint32_t b1) {
  const DenseMmaIn in{{sum[0], sum[1], sum[2], sum[3]}, a, {b0, b1}};
  const auto half = [](uint32_t word, int item) { return item ? word >> 16 : word & 0xFFFF; };
  const MmaOut out = machine().collective<DenseMmaIn, MmaOut>(
      "mma", in, [&half](const DenseMmaIn* lanes, MmaOut* results) {
        float weights[16][16], tokens[16][8];
        for (int lane = 0; lane < 32; ++lane) {
          const int q = lane / 4, t = lane % 4;
          for (int e = 0; e < 2; ++e) {
            for (int r = 0; r < 4; ++r) {
              weights[q + 8 * (r % 2)][2 * t + e + 8 * (r / 2)] =
                  unpack<Value>(half(lanes[lane].a.word[r], e));
            }
            for (int r = 0; r < 2; ++r) {
              tokens[2 * t + e + 8 * r][q] = unpack<Value>(half(lanes[lane].b[r], e));
            }
          }
        }
        dense_sums<16>(lanes, weights, tokens, results);
      });
  for (int i = 0; i < 4; ++i) sum[i] = out.sum[i];
}

// mma.m16n8k8, tf32: the lower 13 bits of a register are not read. A: register r: row q + 8 * (r %
// 2), column t + 4 * (r / 2). B: register r: row t + 4r, column q.
inline void multiply_tf32(float (&sum)[4], Words4 a, uint32_t b0, uint32_t b1) {
  const DenseMmaIn in{{sum[0], sum[1], sum[2], sum[3]}, a, {b0, b1}};
  const MmaOut out = machine().collective<DenseMmaIn, MmaOut>(
      "mma tf32", in, [](const DenseMmaIn* lanes, MmaOut* results) {
        float weights[16][8], tokens[8][8];
        for (int lane = 0; lane < 32; ++lane) {
          const int q = lane / 4, t = lane % 4;
          for (int r = 0; r < 4; ++r) {
            weights[q + 8 * (r % 2)][t + 4 * (r / 2)] =
                as_float(lanes[lane].a.word[r] & 0xFFFFE000u);
          }
          for (int r = 0; r < 2; ++r) {
            tokens[t + 4 * r][q] = as_float(lanes[lane].b[r] & 0xFFFFE000u);
          }
        }
        dense_sums<8>(lanes, weights, tokens, results);
      });
  for (int i = 0; i < 4; ++i) sum[i] = out.sum[i];
}

}  // namespace secateur::device
