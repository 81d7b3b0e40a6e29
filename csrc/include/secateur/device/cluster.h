// What thread blocks of a cluster ask of each other (sm_90 and up). A mapped address names shared
// memory of one thread block of the cluster for all of them; only the functions here take it.
//
// A thread block must not leave while others may still reach its shared memory: a barrier over the
// cluster stands at the end, and one after the mbarriers are initialised.
#pragma once

#include "secateur/device.h"

#if defined(SECATEUR_EMULATED)
#include "emulated/cluster.h"
#else

namespace secateur::device {

// 0 to the size of the cluster - 1.
SECATEUR_DEVICE int cluster_rank() {
  int v = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(v));
#endif
  return v;
}

// The mapped address of what lies at `address` in this thread block, in the thread block `rank`.
SECATEUR_DEVICE uint32_t map_shared(uint32_t address, int rank) {
  uint32_t v = 0;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(v) : "r"(address), "r"(rank));
#endif
  return v;
}

// The two halves of a barrier over all threads of the cluster: what a thread wrote to shared memory
// before the first is seen by those that have passed the second.
SECATEUR_DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
// The first half, where only writes to the thread block's own shared memory are to be seen: a plain
// release waits for global memory as well, as a fence of the whole GPU does.
SECATEUR_DEVICE void cluster_arrive_shared() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "fence.release.sync_restrict::shared::cta.cluster;\n"
      "barrier.cluster.arrive.relaxed;" ::
          : "memory");
#endif
}
// For a barrier that only keeps thread blocks alive: nothing is published, and the writes so far,
// those to global memory among them, are not waited for.
SECATEUR_DEVICE void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}
SECATEUR_DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}
SECATEUR_DEVICE void sync_cluster() {
  cluster_arrive();
  cluster_wait();
}

// Arrives at a mapped mbarrier. It orders what follows (a copy into a buffer that this thread has
// read), but publishes no writes to other thread blocks: that form costs a GPU-wide barrier.
SECATEUR_DEVICE void barrier_arrive_mapped(uint32_t mapped) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(mapped) : "memory");
#endif
}

SECATEUR_DEVICE Words4 load_mapped16(uint32_t mapped) {
  Words4 v{};
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "r"(mapped)
               : "memory");
#endif
  return v;
}

SECATEUR_DEVICE uint32_t load_mapped4(uint32_t mapped) {
  uint32_t v = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(mapped) : "memory");
#endif
  return v;
}

SECATEUR_DEVICE void store_mapped16(uint32_t mapped, Words4 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(mapped), "r"(v.word[0]),
               "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
               : "memory");
#endif
}

SECATEUR_DEVICE void store_mapped4(uint32_t mapped, uint32_t v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(mapped), "r"(v) : "memory");
#endif
}

// Stores 16 bytes in another thread block's shared memory, and counts them at a barrier there: who
// has waited for that barrier sees them, and no barrier over the cluster is needed.
SECATEUR_DEVICE void store_counted16(uint32_t mapped, Words4 v, uint32_t mapped_barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::
          "r"(mapped),
      "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]), "r"(mapped_barrier)
      : "memory");
#endif
}

// copy_bulk to the same place in every thread block whose bit is set in `ranks`; each one's barrier
// at the same place as `barrier` counts the bytes that it gets.
SECATEUR_DEVICE void copy_bulk_multicast(uint32_t target, const void* source, uint32_t bytes,
                                         uint32_t barrier, uint16_t ranks, uint64_t policy) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      ".L2::cache_hint [%0], [%1], %2, [%3], %4, %5;" ::"r"(target),
      "l"(source), "r"(bytes), "r"(barrier), "h"(ranks), "l"(policy)
      : "memory");
#endif
}

}  // namespace secateur::device
#endif
