// The port of shared memory: loads of 16 bytes, ldmatrix, and loads while bulk copies write.
#include "stream_kernel.h"

namespace micro {
namespace {

constexpr int tile_bytes = 16 * 1024;

struct Reads {
  int steps;  // of eight loads a warp
  int64_t* clocks;
  uint32_t* sink;
};

__device__ __forceinline__ uint32_t mixed(secateur::Words4 v) {
  return v.word[0] ^ v.word[1] ^ v.word[2] ^ v.word[3];
}

// Every warp reads 512 B an instruction, all of a tile in turns: loads from the same addresses would
// leave the loop.
template <bool Matrices>
__device__ __forceinline__ uint32_t read_tile(uint32_t base, int warp, int steps) {
  uint32_t all = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    secateur::Words4 v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t at =
          base + ((warp + step) * 4096 + i * 512) % tile_bytes + 16 * device::lane();
      v[i] = Matrices ? device::load_matrices(at) : device::load_shared16(at);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) all ^= mixed(v[i]);
  }
  return all;
}

template <bool Matrices>
__global__ __launch_bounds__(512) void read_kernel(const __grid_constant__ Reads r) {
  extern __shared__ __align__(128) uint8_t shared[];
  for (int i = threadIdx.x; i < tile_bytes; i += blockDim.x) shared[i] = static_cast<uint8_t>(i);
  __syncthreads();
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int64_t start = clock_now();
  const uint32_t all = read_tile<Matrices>(base, threadIdx.x / 32, r.steps);
  __syncthreads();
  if (threadIdx.x == 0) r.clocks[blockIdx.x] = clock_now() - start;
  if (all == 0x12345678u) *r.sink = all;
}

template <bool Matrices>
void read(const char* name, int warps, int64_t* clocks, uint32_t* sink) {
  Launch how{};
  how.blocks = multiprocessors();
  how.threads = 32 * warps;
  how.shared_bytes = tile_bytes;
  const Reads r{4096, clocks, sink};
  seconds([&](cudaStream_t stream) {
    how.stream = stream;
    MICRO_CHECK(launch_kernel<read_kernel<Matrices>>(how, r));
  });
  report(name, warps * r.steps * 8 * 512.0 / median_clocks(clocks, how.blocks), "B/clock");
}

// Eight warps read while one thread copies from the L2 cache into a ring that nobody reads.
struct Both {
  Stream stream;
  Reads reads;
  int64_t* copied;  // bytes, by each thread block, in the clocks of `reads`
};

__global__ __launch_bounds__(288) void both_kernel(const __grid_constant__ Both b) {
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t tile = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  Ring ring{tile + tile_bytes, b.stream.stages, b.stream.stage_units * unit_bytes};
  // Warps that still read, behind all else; a launch allows no static shared memory beside.
  volatile int& reading =
      *reinterpret_cast<volatile int*>(shared + tile_bytes + shared_bytes(b.stream));
  for (int i = threadIdx.x; i < tile_bytes; i += blockDim.x) shared[i] = static_cast<uint8_t>(i);
  if (threadIdx.x == 0) {
    reading = 8;
    for (int i = 0; i < ring.stages; ++i) device::barrier_init(ring.full() + 8 * i, 1);
    device::barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 256) {
    const Stream& s = b.stream;
    const uint64_t policy = device::read_again_policy();
    int64_t unit = device::block() * s.block_start % s.units, stages = 0;
    Ring oldest = ring;
    for (; stages < s.stages || reading != 0; ++stages) {
      if (stages >= s.stages) {
        device::barrier_wait(oldest.full(), oldest.phase);
        oldest.advance();
      }
      fill_stage<1>(s, ring, unit, 0, policy);
      ring.advance();
      unit += s.stage_units;
      if (unit >= s.units) unit -= s.units;
    }
    b.copied[blockIdx.x] = stages * s.stage_units * unit_bytes;
    for (int i = 0; i < s.stages; ++i, oldest.advance()) {
      device::barrier_wait(oldest.full(), oldest.phase);
    }
  } else if (threadIdx.x < 256) {
    const int64_t start = clock_now();
    const uint32_t all = read_tile<false>(tile, threadIdx.x / 32, b.reads.steps);
    if (threadIdx.x % 32 == 0) atomicSub(const_cast<int*>(&reading), 1);
    if (threadIdx.x == 0) b.reads.clocks[blockIdx.x] = clock_now() - start;
    if (all == 0x12345678u) *b.reads.sink = all;
  }
}

void both(int64_t* clocks, uint32_t* sink) {
  constexpr int64_t units = 20'000'000 / unit_bytes / 4 * 4;
  Both b{};
  b.stream.source = allocate<uint8_t>(units * unit_bytes, 1);
  b.stream.units = units, b.stream.stages = 6, b.stream.stage_units = 4;
  b.reads = {4096, clocks, sink};
  Launch how{};
  how.blocks = multiprocessors();
  how.threads = 288;
  how.shared_bytes = tile_bytes + shared_bytes(b.stream) + 16;
  b.stream.block_start = units / how.blocks;
  b.copied = allocate<int64_t>(how.blocks);
  seconds([&](cudaStream_t stream) {
    how.stream = stream;
    MICRO_CHECK(launch_kernel<both_kernel>(how, b));
  });
  const double taken = median_clocks(clocks, how.blocks);
  report("shared memory loads beside bulk copies", 8 * b.reads.steps * 8 * 512.0 / taken,
         "B/clock");
  report("bulk copies beside shared memory loads", median_clocks(b.copied, how.blocks) / taken,
         "B/clock");
}

}  // namespace
}  // namespace micro

int main() {
  using namespace micro;
  int64_t* clocks = allocate<int64_t>(multiprocessors());
  uint32_t* sink = allocate<uint32_t>(1);
  read<false>("shared memory loads, 4 warps", 4, clocks, sink);
  read<false>("shared memory loads, 8 warps", 8, clocks, sink);
  read<true>("ldmatrix.x4, 4 warps", 4, clocks, sink);
  read<true>("ldmatrix.x4, 8 warps", 8, clocks, sink);
  both(clocks, sink);
  return 0;
}
