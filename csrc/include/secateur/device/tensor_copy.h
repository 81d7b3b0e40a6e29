// Copies of boxes of a matrix by the tensor memory accelerator (sm_90 and up).
#pragma once

#include "secateur/common.h"

#if defined(__CUDACC__) || defined(SECATEUR_EMULATED)
#include "secateur/device.h"
#endif

#if defined(SECATEUR_EMULATED)
#include "emulated/tensor_copy.h"
#else

namespace secateur::device {

// What the driver encodes (library/tensor_map.h): where a matrix lies and how large a box is. It is
// part of a kernel's argument.
struct alignas(128) TensorMap {
  uint64_t word[16];
};

#if defined(__CUDACC__)  // other host code knows the map only

SECATEUR_DEVICE void prefetch_map(const TensorMap& map) {
#if __CUDA_ARCH__ >= 900
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

// The box whose first column and row are given, in the map's order. All its bytes count at the
// barrier, also those beyond the matrix, which are zero. `target` is a multiple of 1024.
SECATEUR_DEVICE void copy_box(uint32_t target, const TensorMap& map, int column, int row,
                              uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(target),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
#endif
}

// Asks for the bytes of a box into the L2 cache, and waits for nothing.
SECATEUR_DEVICE void prefetch_box(const TensorMap& map, int column, int row) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(&map),
               "r"(column), "r"(row)
               : "memory");
#endif
}

// To the same place in every thread block of the cluster whose bit is set in `ranks`; each one's
// barrier at the same place counts the bytes.
SECATEUR_DEVICE void copy_box_multicast(uint32_t target, const TensorMap& map, int column, int row,
                                        uint32_t barrier, uint16_t ranks) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(target),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(ranks)
      : "memory");
#endif
}

// For bytes that other thread blocks will read again.
SECATEUR_DEVICE uint64_t read_again_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

#endif

}  // namespace secateur::device
#endif
