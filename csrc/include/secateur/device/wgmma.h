// Warpgroups of four warps (sm_90a): asynchronous products with a 2:4 operand in registers, and how
// registers are shared out.
//
// What a product reads and writes (sums, values, metadata, shared memory) must be left alone until
// a wait that covers its group; `own` says from where on sums are ordinary registers again.
#pragma once

#include "secateur/device.h"

#if defined(SECATEUR_EMULATED)
#include "emulated/wgmma.h"
#else

namespace secateur::device {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool has_warpgroups = true;
#else
constexpr bool has_warpgroups = false;
#endif

// Of all warps of the calling warpgroup: at most, or at least, `Count` registers a thread.
template <int Count>
SECATEUR_DEVICE void give_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
#endif
}
template <int Count>
SECATEUR_DEVICE void take_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
#endif
}

// Stands between the last ordinary access to registers and the products that use them.
SECATEUR_DEVICE void wgmma_fence() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Products so far that are in no group form one.
SECATEUR_DEVICE void wgmma_commit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most the last `Pending` groups are unfinished.
template <int Pending>
SECATEUR_DEVICE void wgmma_wait() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#endif
}

// Behind a wait for all products: keeps the compiler from reading sums before it.
template <int TokenTiles>
SECATEUR_DEVICE void own(float (&sums)[TokenTiles][4]) {
#pragma unroll
  for (int n = 0; n < TokenTiles; ++n) {
    asm volatile("" : "+f"(sums[n][0]), "+f"(sums[n][1]), "+f"(sums[n][2]), "+f"(sums[n][3]));
  }
}

// Begins sums += a @ b: `values` and `metadata` are the lane's part of a (64 rows x 32 columns,
// 2:4; as for multiply_sparse, the warp's sixteen rows), b is 32 columns of TokenTiles * 8 tokens
// in shared memory, where `tokens` (matrix_descriptor.h) says. The sums of a warp are tiles of 16
// rows x 8 tokens side by side, each laid out as accumulator.h says.
template <typename Value, int Selector, int TokenTiles>
SECATEUR_DEVICE void wgmma_sparse(float (&sums)[TokenTiles][4], const Words4& values,
                                  const uint32_t& metadata, uint64_t tokens);

template <typename Value>
constexpr bool is_bf16 = false;
template <>
constexpr bool is_bf16<Bf16> = true;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Operands in the asm text: sums first, then values, tokens, metadata, selector.
#define SECATEUR_SUMS_32                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SECATEUR_SUMS_64                                                                           \
  SECATEUR_SUMS_32 ", "                                                                            \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SECATEUR_SUMS_128                                                                          \
  SECATEUR_SUMS_64 ", "                                                                            \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, "          \
  "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SECATEUR_SUMS_192                                                                          \
  SECATEUR_SUMS_128 ", "                                                                           \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, "          \
  "%81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SECATEUR_SUMS_256                                                                          \
  SECATEUR_SUMS_192 ", "                                                                           \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "         \
  "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "           \
  "%125, %126, %127"

#define SECATEUR_TILE(n) "+f"(sums[n][0]), "+f"(sums[n][1]), "+f"(sums[n][2]), "+f"(sums[n][3])
#define SECATEUR_TILES_4(n) \
  SECATEUR_TILE(n), SECATEUR_TILE(n + 1), SECATEUR_TILE(n + 2), SECATEUR_TILE(n + 3)
#define SECATEUR_TILES_8(n) SECATEUR_TILES_4(n), SECATEUR_TILES_4(n + 4)
#define SECATEUR_TILES_16(n) SECATEUR_TILES_8(n), SECATEUR_TILES_8(n + 8)

#define SECATEUR_WGMMA(TYPE, TOKENS, TEXT, A, B, E, S, ...)                                       \
  asm volatile("wgmma.mma_async.sp.sync.aligned.m64n" #TOKENS "k32.f32." TYPE "." TYPE             \
               " {" TEXT "}, {" A "}, " B ", " E ", " S ", 1, 1, 1, 0;"                            \
               : __VA_ARGS__                                                                       \
               : "r"(values.word[0]), "r"(values.word[1]), "r"(values.word[2]),                    \
                 "r"(values.word[3]), "l"(tokens), "r"(metadata), "n"(Selector))

#define SECATEUR_WGMMA_SHAPES(TYPE)                                                                \
  if constexpr (TokenTiles == 4) {                                                                 \
    SECATEUR_WGMMA(TYPE, 32, SECATEUR_SUMS_32, "%16, %17, %18, %19", "%20",                        \
                   "%21", "%22", SECATEUR_TILES_4(0));                                             \
  } else if constexpr (TokenTiles == 8) {                                                          \
    SECATEUR_WGMMA(TYPE, 64, SECATEUR_SUMS_64, "%32, %33, %34, %35", "%36",                        \
                   "%37", "%38", SECATEUR_TILES_8(0));                                             \
  } else if constexpr (TokenTiles == 16) {                                                         \
    SECATEUR_WGMMA(TYPE, 128, SECATEUR_SUMS_128, "%64, %65, %66, %67", "%68",                      \
                   "%69", "%70", SECATEUR_TILES_16(0));                                            \
  } else if constexpr (TokenTiles == 24) {                                                         \
    SECATEUR_WGMMA(TYPE, 192, SECATEUR_SUMS_192, "%96, %97, %98, %99", "%100",                     \
                   "%101", "%102", SECATEUR_TILES_16(0), SECATEUR_TILES_8(16));                    \
  } else if constexpr (TokenTiles == 32) {                                                         \
    SECATEUR_WGMMA(TYPE, 256, SECATEUR_SUMS_256, "%128, %129, %130, %131", "%132",                 \
                   "%133", "%134", SECATEUR_TILES_16(0), SECATEUR_TILES_16(16));                   \
  }

#endif  // sm_90a

template <typename Value, int Selector, int TokenTiles>
SECATEUR_DEVICE void wgmma_sparse(float (&sums)[TokenTiles][4], const Words4& values,
                                  const uint32_t& metadata, uint64_t tokens) {
  constexpr bool known = TokenTiles == 4 || TokenTiles == 8 || TokenTiles == 16 ||
                         TokenTiles == 24 || TokenTiles == 32;
  static_assert(known, "32, 64, 128, 192 or 256 tokens");
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (is_bf16<Value>) {
    SECATEUR_WGMMA_SHAPES("bf16")
  } else {
    SECATEUR_WGMMA_SHAPES("f16")
  }
#endif
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#undef SECATEUR_WGMMA_SHAPES
#undef SECATEUR_WGMMA
#undef SECATEUR_TILES_16
#undef SECATEUR_TILES_8
#undef SECATEUR_TILES_4
#undef SECATEUR_TILE
#undef SECATEUR_SUMS_256
#undef SECATEUR_SUMS_192
#undef SECATEUR_SUMS_128
#undef SECATEUR_SUMS_64
#undef SECATEUR_SUMS_32
#endif

}  // namespace secateur::device
#endif
