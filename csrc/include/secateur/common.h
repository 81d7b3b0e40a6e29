// What host code, device code and the tests' emulation of a GPU share.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SECATEUR_INLINE __host__ __device__ __forceinline__
#else
#define SECATEUR_INLINE inline
#endif

namespace secateur {

constexpr int warp_lanes = 32;

// Thread blocks of a cluster: what every GPU that has clusters can launch.
constexpr int max_cluster = 8;

// Of rows and columns: twice as many fit into 32 bits.
constexpr int max_size = 1 << 30;

struct Words4 {
  uint32_t word[4];
};

// Value types: both have 16 bits, and only arithmetic tells them apart.
struct Bf16 {};
struct Fp16 {};

SECATEUR_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// SiLU-and-multiply halves the columns of y.
SECATEUR_INLINE constexpr int output_columns(int rows, bool silu_and_mul) {
  return silu_and_mul ? rows / 2 : rows;
}

}  // namespace secateur
