// What thread blocks of a cluster cost each other: barriers, distributed shared memory, mbarriers;
// and what summing through memory costs instead: a fence and a ticket.
#include <string>

#include "harness.h"
#include "secateur/device/cluster.h"

namespace micro {
namespace {

namespace device = secateur::device;

struct Case {
  int steps;
  int64_t* clocks;
  uint32_t* sink;
};

__global__ void barrier_kernel(const __grid_constant__ Case c) {
  device::sync_cluster();
  const int64_t start = clock_now();
#pragma unroll 1
  for (int i = 0; i < c.steps; ++i) device::sync_cluster();
  if (threadIdx.x == 0) c.clocks[blockIdx.x] = clock_now() - start;
}

constexpr int read_threads = 256;
constexpr int tile_bytes = read_threads * 128;

// Every warp reads 512 B an instruction of the neighbour's shared memory: in a row, or 16 B each of
// 32 rows of 128 B.
template <bool InARow>
__global__ __launch_bounds__(read_threads) void read_kernel(const __grid_constant__ Case c) {
  extern __shared__ __align__(128) uint8_t shared[];
  for (int i = threadIdx.x; i < tile_bytes / 4; i += blockDim.x) {
    reinterpret_cast<uint32_t*>(shared)[i] = i;
  }
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  int size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  const uint32_t peer = device::map_shared(base, (device::cluster_rank() + 1) % size);
  device::sync_cluster();
  const int64_t start = clock_now();
  uint32_t all = 0;
#pragma unroll 1
  for (int step = 0; step < c.steps; ++step) {
    secateur::Words4 v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      // Eight lanes, eight chunks of 16 bytes: every bank once. Other addresses at every step, as
      // loads from the same ones would leave the loop.
      const uint32_t row = (threadIdx.x + 32 * step) % read_threads;
      const uint32_t scattered = row * 128 + 16 * (i ^ row % 8);
      const uint32_t chunk = (threadIdx.x + read_threads * (i + step)) % (tile_bytes / 16);
      v[i] = device::load_mapped16(peer + (InARow ? 16 * chunk : scattered));
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) all ^= v[i].word[0] ^ v[i].word[1] ^ v[i].word[2] ^ v[i].word[3];
  }
  __syncthreads();
  if (threadIdx.x == 0) c.clocks[blockIdx.x] = clock_now() - start;
  if (all == 0x12345678u) *c.sink = all;
  device::sync_cluster();
}

constexpr int copy_bytes = 8192;
constexpr int copy_stages = 6;
constexpr int copy_shared_bytes = (copy_stages + 1) * copy_bytes + 16 * copy_stages;

// To the place `mapped` of another thread block of the cluster, whose barrier counts the bytes.
SECATEUR_DEVICE void copy_bulk_to(uint32_t mapped, uint32_t source, uint32_t bytes,
                                  uint32_t mapped_barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::
          "r"(mapped), "r"(source), "r"(bytes), "r"(mapped_barrier)
      : "memory");
#endif
}

// Every thread block fills a ring of its neighbour's by bulk copies, as another one fills its own:
// one warp copies, another waits for what comes and gives the stage back.
__global__ __launch_bounds__(64) void copy_kernel(const __grid_constant__ Case c) {
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t source = ring + copy_stages * copy_bytes;
  const uint32_t full = source + copy_bytes;
  const uint32_t empty = full + 8 * copy_stages;
  int size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  const int rank = device::cluster_rank();
  if (threadIdx.x == 0) {
    for (int i = 0; i < copy_stages; ++i) {
      device::barrier_init(full + 8 * i, 1);
      device::barrier_init(empty + 8 * i, 1);
    }
    device::barrier_init_fence();
    for (int i = 0; i < copy_stages; ++i) device::barrier_arrive_expect(full + 8 * i, copy_bytes);
  }
  device::sync_cluster();
  const int64_t start = clock_now();
  if (threadIdx.x == 0) {
    const uint32_t target = device::map_shared(ring, (rank + 1) % size);
#pragma unroll 1
    for (int i = 0; i < c.steps; ++i) {
      const int stage = i % copy_stages, lap = i / copy_stages;
      if (lap > 0) device::barrier_wait_cluster(empty + 8 * stage, (lap - 1) & 1);
      const uint32_t arrived = target + (full - ring) + 8 * stage;
      copy_bulk_to(target + stage * copy_bytes, source, copy_bytes, arrived);
    }
  } else if (threadIdx.x == 32) {
    const uint32_t sender = device::map_shared(empty, (rank + size - 1) % size);
#pragma unroll 1
    for (int i = 0; i < c.steps; ++i) {
      const int stage = i % copy_stages;
      device::barrier_wait_cluster(full + 8 * stage, i / copy_stages & 1);
      if (i + copy_stages >= c.steps) continue;
      device::barrier_arrive_expect(full + 8 * stage, copy_bytes);
      device::barrier_arrive_mapped(sender + 8 * stage);
    }
    c.clocks[blockIdx.x] = clock_now() - start;
  }
  __syncwarp();
  device::sync_cluster();
}

template <bool Across>
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  if constexpr (Across) {
    device::barrier_wait_cluster(barrier, parity);
  } else {
    device::barrier_wait(barrier, parity);
  }
}

// Two warps, of one thread block or of two in a cluster, wait for each other in turns.
template <bool Across>
__global__ __launch_bounds__(64) void mbarrier_kernel(const __grid_constant__ Case c) {
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t mine = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if (threadIdx.x == 0) {
    device::barrier_init(mine, 1);
    device::barrier_init(mine + 8, 1);
    device::barrier_init_fence();
  }
  device::sync_block();
  if constexpr (Across) device::sync_cluster();
  // The first of the pair arrives at once; each then waits at its own and arrives at the other's.
  const int rank = Across ? device::cluster_rank() : static_cast<int>(threadIdx.x / 32);
  const bool plays = Across ? threadIdx.x == 0 : threadIdx.x % 32 == 0;
  if (plays) {
    const uint32_t own = Across ? mine : mine + 8 * rank;
    const uint32_t other = Across ? device::map_shared(mine, 1 - rank) : mine + 8 * (1 - rank);
    const int64_t start = clock_now();
#pragma unroll 1
    for (int i = 0; i < c.steps; ++i) {
      if (rank == 1) wait<Across>(own, i & 1);
      if constexpr (Across) {
        device::barrier_arrive_mapped(other);
      } else {
        device::barrier_arrive(other);
      }
      if (rank == 0) wait<Across>(own, i & 1);
    }
    if (rank == 0 || Across) c.clocks[blockIdx.x] = clock_now() - start;
  }
  __syncwarp();
  if constexpr (Across) device::sync_cluster();
}

// As the last part of a K split without clusters: partial sums out, then a ticket that orders them.
__global__ __launch_bounds__(32) void ticket_kernel(const __grid_constant__ Case c) {
  const int64_t start = clock_now();
  uint32_t all = 0;
#pragma unroll 1
  for (int i = 0; i < c.steps; ++i) {
    const float sums[4] = {1.f * i, 2.f, 3.f, 4.f};
    float* place = reinterpret_cast<float*>(c.sink) + 256 + blockIdx.x * 128 + 4 * threadIdx.x;
    device::store_partial(place, sums);
    device::sync_warp();
    uint32_t before = 0;
    if (threadIdx.x == 0) before = device::take_ordered_ticket(c.sink + blockIdx.x % 8);
    all += device::shuffle(before, 0);
  }
  if (threadIdx.x == 0) c.clocks[blockIdx.x] = clock_now() - start;
  if (all == 0x12345678u) c.sink[64] = all;
}

template <auto Kernel>
double clocks_a_step(Case c, int threads, int cluster, int shared = 0) {
  Launch how{};
  how.blocks = blocks_of_one_wave(Kernel, threads, shared, cluster);
  how.threads = threads;
  how.shared_bytes = shared;
  how.cluster = cluster;
  seconds([&](cudaStream_t stream) {
    how.stream = stream;
    MICRO_CHECK((launch_kernel<Kernel>(how, c)));
  });
  return median_clocks(c.clocks, how.blocks) / c.steps;
}

}  // namespace
}  // namespace micro

int main() {
  using namespace micro;
  const Case c{2000, allocate<int64_t>(multiprocessors()), allocate<uint32_t>(1 << 16)};
  for (int cluster : {2, 4, 8}) {
    const std::string of = " of " + std::to_string(cluster);
    report(("barrier of a cluster" + of).c_str(), clocks_a_step<barrier_kernel>(c, 288, cluster),
           "clocks");
    const double scattered =
        clocks_a_step<read_kernel<false>>(c, read_threads, cluster, tile_bytes);
    report(("loads of a neighbour's shared memory, cluster" + of).c_str(), 8 * 8 * 512 / scattered,
           "B/clock");
    const double in_a_row = clocks_a_step<read_kernel<true>>(c, read_threads, cluster, tile_bytes);
    report(("contiguous loads of a neighbour's shared memory, cluster" + of).c_str(),
           8 * 8 * 512 / in_a_row, "B/clock");
  }
  report("mbarrier there and back", clocks_a_step<mbarrier_kernel<false>>(c, 64, 1, 16), "clocks");
  report("mbarrier there and back, cluster of 2", clocks_a_step<mbarrier_kernel<true>>(c, 64, 2, 16),
         "clocks");
  report("partial sums, ordered ticket", clocks_a_step<ticket_kernel>(c, 32, 1), "clocks");
  for (int cluster : {2, 4, 8}) {
    const double clocks = clocks_a_step<copy_kernel>(c, 64, cluster, copy_shared_bytes);
    const std::string of = " of " + std::to_string(cluster);
    report(("bulk copies to a neighbour's shared memory, cluster" + of).c_str(),
           copy_bytes / clocks, "B/clock");
  }
  return 0;
}
