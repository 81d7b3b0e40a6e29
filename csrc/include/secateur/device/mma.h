// Dense matrix instructions on registers (sm_80 and up), and what goes with them.
#pragma once

#include "secateur/device.h"

#if defined(SECATEUR_EMULATED)
#include "emulated/mma.h"
#else

namespace secateur::device {

// Whether it holds for any lane of the warp.
SECATEUR_DEVICE bool any(bool v) { return __any_sync(0xFFFFFFFFu, v); }

SECATEUR_DEVICE void store_shared8(uint32_t target, uint32_t low, uint32_t high) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(target), "r"(low), "r"(high) : "memory");
}

// Four partial sums that other thread blocks have left in the L2 cache.
SECATEUR_DEVICE void load_partial(float (&v)[4], const float* source) {
  const float4 found = __ldcg(reinterpret_cast<const float4*>(source));
  v[0] = found.x, v[1] = found.y, v[2] = found.z, v[3] = found.w;
}

#define SECATEUR_MMA(SHAPE, TYPE)                                                             \
  asm("mma.sync.aligned." SHAPE ".row.col.f32." TYPE "." TYPE ".f32 "                         \
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                       \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                \
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1))

// sum += a @ b for weights a (16 x 16) and eight tokens b (16 x 8) of 16-bit values.
template <typename Value>
SECATEUR_DEVICE void multiply_dense(float (&sum)[4], Words4 a, uint32_t b0, uint32_t b1);

template <>
SECATEUR_DEVICE void multiply_dense<Bf16>(float (&sum)[4], Words4 a, uint32_t b0, uint32_t b1) {
  SECATEUR_MMA("m16n8k16", "bf16");
}
template <>
SECATEUR_DEVICE void multiply_dense<Fp16>(float (&sum)[4], Words4 a, uint32_t b0, uint32_t b1) {
  SECATEUR_MMA("m16n8k16", "f16");
}

// The same for a (16 x 8) and b (8 x 8) in fp32, of which only the upper 19 bits count.
SECATEUR_DEVICE void multiply_tf32(float (&sum)[4], Words4 a, uint32_t b0, uint32_t b1) {
  SECATEUR_MMA("m16n8k8", "tf32");
}
#undef SECATEUR_MMA

}  // namespace secateur::device
#endif
