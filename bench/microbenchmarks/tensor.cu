// How fast the tensor cores are with nothing to wait for: 2:4 against dense, by warps with both
// operands in registers, and by warpgroups with the tokens in shared memory. Values are random, since
// zeros take less power and so run at higher clocks.
#include <string>

#include "harness.h"
#include "random_values.h"
#include "secateur/device/mma.h"
#include "warpgroup.h"

namespace micro {
namespace {

namespace device = secateur::device;

struct Case {
  int steps;
  int64_t* clocks;
  float* sink;
};

constexpr int chains = 8;  // sums of a warp that do not wait for each other

template <bool Sparse>
__global__ __launch_bounds__(512) void warp_kernel(const __grid_constant__ Case c) {
  const uint32_t seed = 100 * threadIdx.x;
  Words4 a[2], b[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) a[i] = random_words(seed + i), b[i] = random_words(seed + 50 + i);
  float sums[chains][4];
#pragma unroll
  for (int i = 0; i < 4 * chains; ++i) sums[i / 4][i % 4] = static_cast<float>(threadIdx.x + i);
  const int64_t start = clock_now();
#pragma unroll 1
  for (int step = 0; step < c.steps; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < chains; ++i) {
        if constexpr (!Sparse) {
          device::multiply_dense<Bf16>(sums[i], a[half], b[i % 2].word[0], b[i % 2].word[1]);
        } else if (half == 0) {
          device::multiply_sparse<Bf16, 0>(sums[i], a[0], b[i % 2], columns_0_and_2);
        } else {
          device::multiply_sparse<Bf16, 1>(sums[i], a[1], b[i % 2], columns_0_and_2);
        }
      }
    }
  }
  float all = 0;
#pragma unroll
  for (int i = 0; i < 4 * chains; ++i) all += sums[i / 4][i % 4];
  if (all == 12345.f) *c.sink = all;
  __syncthreads();
  if (threadIdx.x == 0) c.clocks[blockIdx.x] = clock_now() - start;
}

constexpr int alignment = 1024;  // where the order of the 128-byte swizzle repeats

template <int N, bool Sparse>
__global__ __launch_bounds__(256) void warpgroup_kernel(const __grid_constant__ Case c) {
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t start_of_all = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t base = (start_of_all + alignment - 1) / alignment * alignment;
  for (int i = threadIdx.x; i < N * 8; i += blockDim.x) {
    device::store_shared16(base + 16 * i, random_words(i + 7777));
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  using Multiply = Warpgroup<Bf16, N>;
  Words4 a[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) a[i] = random_words(100 * threadIdx.x + i);
  float sums[Multiply::sums];
#pragma unroll
  for (int i = 0; i < Multiply::sums; ++i) sums[i] = static_cast<float>(threadIdx.x + i);
  const int64_t start = clock_now();
#pragma unroll 1
  for (int step = 0; step < c.steps; ++step) {
    warpgroup_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint64_t tile = tile_descriptor(base + (Sparse ? 64 * (i % 2) : 32 * i));
      if constexpr (!Sparse) {
        Multiply::dense(sums, a[i % 2], tile);
      } else if (i % 2 == 0) {
        Multiply::template sparse<0>(sums, a[0], tile, columns_0_and_2);
      } else {
        Multiply::template sparse<1>(sums, a[1], tile, columns_0_and_2);
      }
    }
    warpgroup_commit();
    warpgroup_wait<1>();
  }
  warpgroup_wait<0>();
  float all = 0;
#pragma unroll
  for (int i = 0; i < Multiply::sums; ++i) all += sums[i];
  if (all == 12345.f) *c.sink = all;
  __syncthreads();
  if (threadIdx.x == 0) c.clocks[blockIdx.x] = clock_now() - start;
}

// `flops` are those of one instruction on a dense weight; of each multiprocessor, `units` schedulers
// (warps) or the one set of tensor cores (warpgroups) take instructions one after the other.
template <auto Kernel>
void measure(const char* name, Case c, int groups, int group_threads, int per_step, double flops,
             int units, int shared = 0) {
  Launch how{};
  how.blocks = multiprocessors();
  how.threads = groups * group_threads;
  how.shared_bytes = shared;
  const double taken = seconds([&](cudaStream_t stream) {
    how.stream = stream;
    MICRO_CHECK(launch_kernel<Kernel>(how, c));
  });
  const double each = static_cast<double>(groups) * c.steps * per_step;
  const std::string of = name;
  const double clocks = median_clocks(c.clocks, how.blocks);
  report((of + ", clocks an instruction").c_str(), clocks * units / each, "clocks");
  report((of + ", multiprocessor clock").c_str(), clocks / taken * 1e-9, "GHz");
  report((of + ", dense-equivalent rate").c_str(), each * flops * how.blocks / taken * 1e-12,
         "TFLOP/s");
}

template <int N>
void warpgroups(Case c, int groups) {
  // As long for every N: a few milliseconds.
  c.steps = c.steps * 64 / N;
  const std::string of = "n" + std::to_string(N) + ", " + std::to_string(groups) +
                         (groups == 1 ? " warpgroup" : " warpgroups");
  const double flops = 2.0 * 64 * N * 32;
  measure<warpgroup_kernel<N, true>>(("wgmma.sp m64" + of).c_str(), c, groups, 128, 4, flops, 1,
                                     N * 128 + alignment);
  measure<warpgroup_kernel<N, false>>(("wgmma m64" + of).c_str(), c, groups, 128, 4, flops / 2, 1,
                                      N * 128 + alignment);
}

}  // namespace
}  // namespace micro

int main() {
  using namespace micro;
  const Case c{80000, allocate<int64_t>(multiprocessors()), allocate<float>(1)};
  constexpr double flops = 2.0 * 16 * 8 * 32;
  for (int warps : {4, 8, 16}) {
    const std::string of = ", " + std::to_string(warps) + " warps";
    measure<warp_kernel<true>>(("mma.sp m16n8k32" + of).c_str(), c, warps, 32, 2 * chains, flops, 4);
    measure<warp_kernel<false>>(("mma m16n8k16" + of).c_str(), c, warps, 32, 2 * chains, flops / 2,
                                4);
  }
  for (int groups : {1, 2}) {
    warpgroups<64>(c, groups);
    warpgroups<128>(c, groups);
    warpgroups<256>(c, groups);
  }
  return 0;
}
