// Matrix instructions of a warpgroup with A from registers and B from shared memory in the order of
// the 128-byte swizzle: m64nNk32 for a 2:4 weight, m64nNk16 for a dense one, bf16 or fp16.
#pragma once

#include <cstdint>

#include "secateur/common.h"

namespace micro {

using secateur::Bf16;
using secateur::Fp16;
using secateur::Words4;

__device__ __forceinline__ void warpgroup_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int Left>
__device__ __forceinline__ void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}

// Of a tile [tokens, 64 columns of 16 bits] at a multiple of 1024 bytes, or 64 bytes into it: rows
// of 128 bytes, groups of eight rows 1024 bytes apart.
__device__ __forceinline__ uint64_t tile_descriptor(uint32_t address) {
  constexpr uint64_t swizzle_128 = 1ull << 62, eight_rows = (1024ull >> 4) << 32, unused = 1ull << 16;
  return swizzle_128 | eight_rows | unused | ((address & 0x3FFFFu) >> 4);
}

#define MICRO_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MICRO_F16(d, i) MICRO_F4(d, i), MICRO_F4(d, i + 4), MICRO_F4(d, i + 8), MICRO_F4(d, i + 12)
#define MICRO_F32(d, i) MICRO_F16(d, i), MICRO_F16(d, i + 16)
#define MICRO_F64(d, i) MICRO_F32(d, i), MICRO_F32(d, i + 32)
#define MICRO_F128(d, i) MICRO_F64(d, i), MICRO_F64(d, i + 64)
#define MICRO_P4 "%0,%1,%2,%3"
#define MICRO_P32                                                                              \
  MICRO_P4 ",%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"   \
           "%25,%26,%27,%28,%29,%30,%31"
#define MICRO_P64                                                                              \
  MICRO_P32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,"    \
            "%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define MICRO_P128                                                                             \
  MICRO_P64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,"    \
            "%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,"   \
            "%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117," \
            "%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// sums += a @ tile.T, asynchronously. N tokens; a lane holds sums of accumulator.h's order for each
// eight of them.
template <typename Value, int N>
struct Warpgroup;

// The operands after the sums: A's four registers, the descriptor, then metadata and selector.
#define MICRO_WARPGROUP(VALUE, TYPE, N, SUMS, PLACES, OPERANDS, A0, A1, A2, A3, B, E, S)           \
  template <>                                                                                      \
  struct Warpgroup<VALUE, N> {                                                                     \
    static constexpr int sums = SUMS;                                                              \
    template <int Selector>                                                                        \
    static __device__ __forceinline__ void sparse(float (&d)[SUMS], Words4 a, uint64_t tile,       \
                                                  uint32_t metadata) {                             \
      asm volatile("wgmma.mma_async.sp.sync.aligned.m64n" #N "k32.f32." TYPE "." TYPE " {" PLACES  \
                   "}, {%" #A0 ",%" #A1 ",%" #A2 ",%" #A3 "}, %" #B ", %" #E ", %" #S              \
                   ", 1, 1, 1, 0;"                                                                 \
                   : OPERANDS(d, 0)                                                                \
                   : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "l"(tile),    \
                     "r"(metadata), "n"(Selector));                                                \
    }                                                                                              \
    static __device__ __forceinline__ void dense(float (&d)[SUMS], Words4 a, uint64_t tile) {      \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" PLACES     \
                   "}, {%" #A0 ",%" #A1 ",%" #A2 ",%" #A3 "}, %" #B ", 1, 1, 1, 0;"                \
                   : OPERANDS(d, 0)                                                                \
                   : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "l"(tile));   \
    }                                                                                              \
  }

MICRO_WARPGROUP(Bf16, "bf16", 64, 32, MICRO_P32, MICRO_F32, 32, 33, 34, 35, 36, 37, 38);
MICRO_WARPGROUP(Bf16, "bf16", 128, 64, MICRO_P64, MICRO_F64, 64, 65, 66, 67, 68, 69, 70);
MICRO_WARPGROUP(Bf16, "bf16", 256, 128, MICRO_P128, MICRO_F128, 128, 129, 130, 131, 132, 133, 134);

#undef MICRO_WARPGROUP

}  // namespace micro
