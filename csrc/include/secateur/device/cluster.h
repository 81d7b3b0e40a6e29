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

// barrier_passed and barrier_wait where other thread blocks of the cluster arrive, copy or store by
// counting: these release at the scope of the cluster (PTX ISA, "st.async", "cp.async.bulk"), and
// who waits has to acquire at the same scope. A fence does so here, for shared memory alone, and is
// no instruction at all on 9.0; `.acquire.cluster` would empty the L1 cache.
SECATEUR_DEVICE bool barrier_passed_cluster(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred done;\n"
      "mbarrier.test_wait.parity.relaxed.cluster.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "fence.acquire.sync_restrict::shared::cluster.cluster;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
#endif
  return done != 0;
}
SECATEUR_DEVICE void barrier_wait_cluster(uint32_t barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
  asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
#endif
}

// Arrives at a mapped mbarrier, for a copy into a buffer that this thread has read. It publishes no
// writes to other thread blocks. For them it is a release by the manual only at the scope of the
// cluster, which makes it a barrier of the whole GPU, or behind a fence for shared memory, which is
// two instructions a step: but a read whose value has been used is over, and that is what has to
// come first here.
SECATEUR_DEVICE void barrier_arrive_mapped(uint32_t mapped) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(mapped) : "memory");
#endif
}

// fence_before_copies where shared memory of other thread blocks is meant as well: they have read
// what is copied to, or copies go to them. A barrier of the whole GPU is part of it: nothing for
// every step.
SECATEUR_DEVICE void fence_before_cluster_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cluster;" ::: "memory");
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
