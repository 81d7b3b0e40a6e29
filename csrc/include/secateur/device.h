// What the kernels ask of a GPU, as functions of one instruction or two each. Kernels use nothing
// else of the hardware, so that the tests can run their source on a CPU: there
// SECATEUR_EMULATED is defined, and a file of their own emulates these functions.
//
// Shared memory is addressed by 32-bit addresses of the shared window. Two families of copies:
// `copy_bulk` (sm_90 and up; an mbarrier counts its bytes) and `copy16` (cp.async, sm_80 and up).
#pragma once

#include "secateur/common.h"

#if defined(SECATEUR_EMULATED)
#include "emulated/device.h"
#else

#define SECATEUR_DEVICE __device__ __forceinline__

namespace secateur::device {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool has_bulk_copies = true;
#else
constexpr bool has_bulk_copies = false;
#endif

SECATEUR_DEVICE int thread() { return static_cast<int>(threadIdx.x & 1023u); }

// The lane and the thread block, read anew at each call: what depends on them is then computed
// where it is needed instead of being kept in registers throughout a loop.
SECATEUR_DEVICE int lane() {
  int v;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(v));
  return v & (warp_lanes - 1);  // tells the compiler the range
}
SECATEUR_DEVICE int block() {
  int v;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(v));
  return v;
}
SECATEUR_DEVICE void sync_block() { __syncthreads(); }
SECATEUR_DEVICE void sync_warp() { __syncwarp(); }

// ---- programmatic dependent launch ------------------------------------------------------------

// The kernel behind this one on the stream may start its thread blocks.
SECATEUR_DEVICE void let_successor_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Returns when the kernel before this one has ended and its memory can be read; at once where this
// one was not launched as a dependent. Every thread block must call it, on every path; before it
// only weights may be read, and nothing written to global memory.
SECATEUR_DEVICE void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- mbarriers in shared memory -------------------------------------------------------------

SECATEUR_DEVICE void barrier_init(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Makes barriers visible to the copy engine; sync_block makes them visible to the other threads.
SECATEUR_DEVICE void barrier_init_fence() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

SECATEUR_DEVICE void barrier_arrive(uint32_t barrier) {
  asm volatile(
      "{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(barrier)
      : "memory");
}

// Arrives, and lets the barrier wait for bytes of bulk copies as well.
SECATEUR_DEVICE void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
#endif
}

// The calling thread's arrival, once all its cp.async copies so far have landed.
SECATEUR_DEVICE void barrier_arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Whether the phase of the given parity has ended. Does not wait.
SECATEUR_DEVICE bool barrier_passed(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// Waits until the phase of the given parity has ended.
SECATEUR_DEVICE void barrier_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
#else
    done = barrier_passed(barrier, parity);
#endif
  } while (done == 0);
}

// ---- copies from global to shared memory ----------------------------------------------------

// For bytes that are read once: they leave the L2 cache first.
SECATEUR_DEVICE uint64_t read_once_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// `bytes`, source and target are multiples of 16.
SECATEUR_DEVICE void copy_bulk(uint32_t target, const void* source, uint32_t bytes,
                               uint32_t barrier, uint64_t policy) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(target),
      "l"(source), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
#endif
}

// Asks for bytes into the L2 cache, and waits for nothing. Both are multiples of 16.
SECATEUR_DEVICE void prefetch_bulk(const void* source, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source), "r"(bytes) : "memory");
#endif
}

// Stands between ordinary accesses to shared memory, reads as well as writes (the thread's own, or
// those of others that a barrier has shown it), and bulk copies to the same place: a barrier alone
// does not order the two proxies. Whoever has read a stage fences before it is given back.
SECATEUR_DEVICE void fence_before_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Sixteen bytes of which the first `valid` come from `source` and the others are zero.
SECATEUR_DEVICE void copy16(uint32_t target, const void* source, int valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(valid)
               : "memory");
}

// Waits for all cp.async copies of the calling thread.
SECATEUR_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- shared memory --------------------------------------------------------------------------

// The address of shared memory, in a register of its own: the compiler, left alone, makes it anew
// in every loop, from a special register that is slow to read.
SECATEUR_DEVICE uint32_t shared_address(const void* memory) {
  uint32_t v;
  asm volatile(
      "{\n.reg .u64 address;\ncvta.to.shared.u64 address, %1;\ncvt.u32.u64 %0, address;\n}"
      : "=r"(v)
      : "l"(memory));
  return v;
}

SECATEUR_DEVICE void store_shared16(uint32_t target, Words4 value) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(value.word[0]),
               "r"(value.word[1]), "r"(value.word[2]), "r"(value.word[3])
               : "memory");
}

SECATEUR_DEVICE void store_shared4(uint32_t target, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(target), "r"(value) : "memory");
}

SECATEUR_DEVICE Words4 load_shared16(uint32_t source) {
  Words4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "r"(source));
  return v;
}

SECATEUR_DEVICE uint32_t load_shared4(uint32_t source) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(source));
  return v;
}

// Four 8 x 8 matrices of 16-bit values; lane 8 * i + j names the 16 bytes of row j of matrix i.
SECATEUR_DEVICE Words4 load_matrices(uint32_t source) {
  Words4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "r"(source));
  return v;
}

// The same matrices, transposed on their way: a lane gets two values of a column.
SECATEUR_DEVICE Words4 load_transposed_matrices(uint32_t source) {
  Words4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "r"(source));
  return v;
}

// The way back (sm_90 and up).
SECATEUR_DEVICE void store_transposed_matrices(uint32_t target, Words4 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   target),
               "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
               : "memory");
#endif
}

// ---- arithmetic -----------------------------------------------------------------------------

#define SECATEUR_MMA_SP(TYPE)                                                                    \
  asm("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE ".f32 "        \
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"      \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                   \
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]),          \
        "r"(b.word[1]), "r"(b.word[2]), "r"(b.word[3]), "r"(metadata), "n"(Selector))

// sum += a @ b for a fragment a of 2:4 weights (16 x 32) and eight tokens b (32 x 8).
template <typename Value, int Selector>
SECATEUR_DEVICE void multiply_sparse(float (&sum)[4], Words4 a, Words4 b, uint32_t metadata);

template <>
SECATEUR_DEVICE void multiply_sparse<Bf16, 0>(float (&sum)[4], Words4 a, Words4 b,
                                              uint32_t metadata) {
  constexpr int Selector = 0;
  SECATEUR_MMA_SP("bf16");
}
template <>
SECATEUR_DEVICE void multiply_sparse<Bf16, 1>(float (&sum)[4], Words4 a, Words4 b,
                                              uint32_t metadata) {
  constexpr int Selector = 1;
  SECATEUR_MMA_SP("bf16");
}
template <>
SECATEUR_DEVICE void multiply_sparse<Fp16, 0>(float (&sum)[4], Words4 a, Words4 b,
                                              uint32_t metadata) {
  constexpr int Selector = 0;
  SECATEUR_MMA_SP("f16");
}
template <>
SECATEUR_DEVICE void multiply_sparse<Fp16, 1>(float (&sum)[4], Words4 a, Words4 b,
                                              uint32_t metadata) {
  constexpr int Selector = 1;
  SECATEUR_MMA_SP("f16");
}
#undef SECATEUR_MMA_SP

// Transposes an 8 x 8 matrix of 16-bit values held by a warp, two values of a row a lane.
SECATEUR_DEVICE uint32_t transpose8x8(uint32_t pair) {
  uint32_t v;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(v) : "r"(pair));
  return v;
}

template <typename T>
SECATEUR_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xFFFFFFFFu, value, lane);
}

SECATEUR_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
SECATEUR_DEVICE uint32_t as_bits(float v) { return __float_as_uint(v); }

// Two floats rounded to nearest even; `low` is the lower half.
template <typename Value>
SECATEUR_DEVICE uint32_t pack(float low, float high);

template <>
SECATEUR_DEVICE uint32_t pack<Bf16>(float low, float high) {
  uint32_t v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
template <>
SECATEUR_DEVICE uint32_t pack<Fp16>(float low, float high) {
  uint32_t v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}

template <typename Value>
SECATEUR_DEVICE float unpack(uint32_t bits);

template <>
SECATEUR_DEVICE float unpack<Bf16>(uint32_t bits) {
  return __uint_as_float(bits << 16);
}
template <>
SECATEUR_DEVICE float unpack<Fp16>(uint32_t bits) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(static_cast<uint16_t>(bits)));
  return v;
}

SECATEUR_DEVICE float exponential(float v) { return expf(v); }

// 1 / v to within one unit in the last place, subnormal results included.
SECATEUR_DEVICE float reciprocal(float v) {
  float r;
  asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// ---- global memory --------------------------------------------------------------------------

template <typename T>
SECATEUR_DEVICE T load(const void* source) {
  return *static_cast<const T*>(source);
}
template <>
SECATEUR_DEVICE Words4 load<Words4>(const void* source) {
  const uint4 v = *static_cast<const uint4*>(source);
  return {{v.x, v.y, v.z, v.w}};
}

template <typename T>
SECATEUR_DEVICE void store(void* target, T value) {
  *static_cast<T*>(target) = value;
}
// As one instruction: the compiler is known to take such stores apart where some are left out.
template <>
SECATEUR_DEVICE void store<Words4>(void* target, Words4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(v.word[0]),
               "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
               : "memory");
}

// Partial sums go to the L2 cache, where other thread blocks find them.
SECATEUR_DEVICE void store_partial(float* target, const float (&v)[4]) {
  __stcg(reinterpret_cast<float4*>(target), make_float4(v[0], v[1], v[2], v[3]));
}
SECATEUR_DEVICE void add_partial(float (&sum)[4], const float* source) {
  const float4 v = __ldcg(reinterpret_cast<const float4*>(source));
  sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
}

// Behind peek_ticket: the thread sees what is of those who came before. Lighter than __threadfence,
// which puts all fences of the GPU into one order.
SECATEUR_DEVICE void fence_device() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// How many came before; the counter must have been zero before the first. Between two fences, of
// which the second waits for nothing: what the thread has seen and written is there for whoever
// comes later, and it sees what is of those who came before.
SECATEUR_DEVICE uint32_t take_ordered_ticket(uint32_t* counter) {
  uint32_t v;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(v) : "l"(counter) : "memory");
  return v;
}

// How many have come so far. Orders nothing: a fence must follow.
SECATEUR_DEVICE uint32_t peek_ticket(const uint32_t* counter) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(counter));
  return v;
}

}  // namespace secateur::device
#endif
