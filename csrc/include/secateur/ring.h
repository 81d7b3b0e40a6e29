// A ring of stages in shared memory, and where in it a warp stands. Those who fill it and those who
// read it walk it in the same order; a stage's phase flips each time round. What a stage holds, and
// where its barriers are, the kernels say.
#pragma once

#include "secateur/common.h"

namespace secateur {

struct RingPlace {
  uint32_t base;
  const int& stages;
  int stage = 0;
  uint32_t phase = 0;

  SECATEUR_INLINE void advance() {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace secateur
