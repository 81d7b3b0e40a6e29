// wgmma.sp as kernels issue it, with nothing to wait for but shared memory: each warpgroup loads
// values and metadata of its units from there, two sets of registers in turns, while the products of
// the other set run. What is below the rate of tensor.cu is the price of feeding.
#include <string>

#include "harness.h"
#include "random_values.h"
#include "secateur/device/wgmma.h"
#include "secateur/fragment24.h"
#include "secateur/matrix_descriptor.h"
#include "secateur/x_tile.h"

namespace micro {
namespace {

namespace device = secateur::device;
namespace fragment24 = secateur::fragment24;
using secateur::Bf16;
using secateur::Words4;
namespace matrix_descriptor = secateur::matrix_descriptor;

constexpr int stages = 4;  // of weights; tokens stay
constexpr int warpgroup_threads = 128;

struct Case {
  int steps;  // pairs of steps of 64 columns
  int64_t* clocks;
  float* sink;
};

struct Fragments {
  Words4 values[2];
  uint32_t metadata;
};

__device__ __forceinline__ void load(Fragments& f, uint32_t tile, int lane) {
  f.values[0] = device::load_shared16(tile + fragment24::value_offset(0, lane));
  f.values[1] = device::load_shared16(tile + fragment24::value_offset(1, lane));
  f.metadata = device::load_shared4(tile + fragment24::metadata_offset(lane));
}

template <int TokenTiles>
__device__ __forceinline__ void begin(float (&sums)[TokenTiles][4], const Fragments& f,
                                      uint64_t tokens) {
  device::wgmma_fence();
  device::wgmma_sparse<Bf16, 0>(sums, f.values[0], f.metadata, tokens);
  device::wgmma_sparse<Bf16, 1>(
      sums, f.values[1], f.metadata,
      matrix_descriptor::advanced(tokens, secateur::x_tile::second_fragment));
  device::wgmma_commit();
}

// Random values, and index pairs (0, 2).
__device__ __forceinline__ void fill(uint32_t target, int bytes, bool weights) {
  for (int at = 16 * threadIdx.x; at < bytes; at += 16 * blockDim.x) {
    const bool pairs = weights && at % fragment24::tile_bytes >= fragment24::value_bytes;
    Words4 words = random_words(at);
    if (pairs) words = {{columns_0_and_2, columns_0_and_2, columns_0_and_2, columns_0_and_2}};
    device::store_shared16(target + at, words);
  }
}

template <int TokenTiles, int Warpgroups>
constexpr int shared_bytes = matrix_descriptor::swizzle_bytes +
                             secateur::x_tile::bytes(TokenTiles) +
                             stages * Warpgroups * fragment24::unit_bytes;

template <int TokenTiles, int Warpgroups>
__global__ __launch_bounds__(Warpgroups* warpgroup_threads) void fed_kernel(
    const __grid_constant__ Case c) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr uint32_t alignment = matrix_descriptor::swizzle_bytes;
  const uint32_t start_of_all = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t tile = (start_of_all + alignment - 1) / alignment * alignment;
  const uint32_t weights = tile + secateur::x_tile::bytes(TokenTiles);
  fill(tile, secateur::x_tile::bytes(TokenTiles), false);
  fill(weights, stages * Warpgroups * fragment24::unit_bytes, true);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  const int lane = device::lane();
  const uint32_t mine = weights + threadIdx.x / 32 * fragment24::tile_bytes;
  const uint64_t tokens = matrix_descriptor::of_tokens(tile);
  const auto at = [&](int step) {
    return mine + step % stages * (Warpgroups * fragment24::unit_bytes);
  };
  float sums[TokenTiles][4];
#pragma unroll
  for (int i = 0; i < 4 * TokenTiles; ++i) sums[i / 4][i % 4] = static_cast<float>(threadIdx.x + i);
  Fragments even, odd;
  const int64_t start = clock_now();
  load(even, at(0), lane);
#pragma unroll 1
  for (int step = 0; step < 2 * c.steps; step += 2) {
    begin(sums, even, tokens);
    device::wgmma_wait<1>();
    load(odd, at(step + 1), lane);
    begin(sums, odd, tokens);
    device::wgmma_wait<1>();
    load(even, at(step + 2), lane);
  }
  device::wgmma_wait<0>();
  device::own(sums);
  float all = __uint_as_float(even.metadata);
#pragma unroll
  for (int i = 0; i < 4 * TokenTiles; ++i) all += sums[i / 4][i % 4];
  if (all == 12345.f) *c.sink = all;
  __syncthreads();
  if (threadIdx.x == 0) c.clocks[blockIdx.x] = clock_now() - start;
}

template <int TokenTiles, int Warpgroups>
void measure(Case c) {
  c.steps = c.steps * 8 / TokenTiles;
  Launch how{};
  how.blocks = multiprocessors();
  how.threads = Warpgroups * warpgroup_threads;
  how.shared_bytes = shared_bytes<TokenTiles, Warpgroups>;
  const double taken = seconds([&](cudaStream_t stream) {
    how.stream = stream;
    MICRO_CHECK((launch_kernel<fed_kernel<TokenTiles, Warpgroups>>(how, c)));
  });
  const double each = 4.0 * Warpgroups * c.steps;
  const double clocks = median_clocks(c.clocks, how.blocks);
  const std::string of = "fed wgmma.sp m64n" + std::to_string(8 * TokenTiles) + ", " +
                         std::to_string(Warpgroups) +
                         (Warpgroups == 1 ? " warpgroup" : " warpgroups");
  const double flops = 2.0 * 64 * 8 * TokenTiles * 32;
  report((of + ", clocks an instruction").c_str(), clocks / each, "clocks");
  report((of + ", dense-equivalent rate").c_str(), each * flops * how.blocks / taken * 1e-12,
         "TFLOP/s");
}

}  // namespace
}  // namespace micro

int main() {
  using namespace micro;
  const Case c{40000, allocate<int64_t>(multiprocessors()), allocate<float>(1)};
  measure<8, 1>(c);
  measure<8, 2>(c);
  measure<16, 1>(c);
  measure<16, 2>(c);
  measure<32, 1>(c);
  measure<32, 2>(c);
  return 0;
}
