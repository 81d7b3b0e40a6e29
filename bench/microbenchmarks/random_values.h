// Values for products: zeros take less power, and so run at higher clocks than a model's weights do.
#pragma once

#include <cstdint>

#include "secateur/common.h"

namespace micro {

// Two bf16 values of either sign between 1 and 2.
__device__ __forceinline__ uint32_t random_pair(uint32_t seed) {
  seed = (seed ^ (seed >> 16)) * 0x7FEB352Du;
  seed = (seed ^ (seed >> 15)) * 0x846CA68Bu;
  return ((seed ^ (seed >> 16)) & 0x807F807Fu) | 0x3F803F80u;
}
__device__ __forceinline__ secateur::Words4 random_words(uint32_t seed) {
  return {{random_pair(4 * seed), random_pair(4 * seed + 1), random_pair(4 * seed + 2),
           random_pair(4 * seed + 3)}};
}

constexpr uint32_t columns_0_and_2 = 0x88888888u;  // the index pair (0, 2) eight times

}  // namespace micro
