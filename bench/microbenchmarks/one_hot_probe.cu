// What the matrix instructions make of packed units: mma.sp m16n8k32 and wgmma.sp m64n8k32 on tokens
// that are one at one column each, so that each sum is one weight as the hardware sees it.
//
//     one_hot_probe bf16|fp16 UNITS SUMS
//
// UNITS holds units of 64 x 64 weights (4608 bytes each). SUMS becomes float32 [unit][instruction]
// [block of eight columns][thread of a warpgroup][sum]: token j of block b is one at column 8 * b + j.
// bench/one_hot_probe.py makes the one and reads the other.
#include <cstring>

#include "harness.h"
#include "secateur/device.h"
#include "secateur/fragment24.h"
#include "secateur/x_tile.h"
#include "warpgroup.h"

namespace micro {
namespace {

namespace device = secateur::device;
namespace fragment24 = secateur::fragment24;
namespace x_tile = secateur::x_tile;

constexpr int warpgroup_threads = 128;
constexpr int blocks = fragment24::unit_columns / 8;
constexpr int instructions = 2;
constexpr int sums_of_unit = instructions * blocks * warpgroup_threads * 4;

struct Probe {
  const uint8_t* units;
  float* sums;
  uint32_t one;  // of the value type
};

// Eight tokens, token j one at column 8 * block + j, in the order in which kernels hold x.
__device__ __forceinline__ void write_tokens(uint32_t tile, int block, uint32_t one) {
  if (threadIdx.x < 8 * x_tile::chunks) {
    const int token = threadIdx.x / x_tile::chunks, chunk = threadIdx.x % x_tile::chunks;
    Words4 words{};
    if (chunk == block) words.word[token / 2] = token % 2 == 0 ? one : one << 16;
    device::store_shared16(tile + x_tile::chunk_offset(token, chunk), words);
  }
  // For the tensor cores, which read shared memory past the usual order.
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
}

__device__ __forceinline__ void write_sums(float* target, const float (&sums)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) target[4 * threadIdx.x + i] = sums[i];
}

template <typename Value>
__global__ __launch_bounds__(warpgroup_threads) void probe_kernel(
    const __grid_constant__ Probe probe) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t tile = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int lane = device::lane();
  // A warp a sub-tile, for both instructions.
  const uint8_t* mine = probe.units + blockIdx.x * static_cast<int64_t>(fragment24::unit_bytes) +
                        threadIdx.x / 32 * fragment24::tile_bytes;
  Words4 values[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    values[i] = device::load<Words4>(mine + fragment24::value_offset(i, lane));
  }
  const auto metadata = device::load<uint32_t>(mine + fragment24::metadata_offset(lane));
  float* target = probe.sums + blockIdx.x * static_cast<int64_t>(sums_of_unit);
#pragma unroll 1
  for (int block = 0; block < blocks; ++block) {
    __syncthreads();
    write_tokens(tile, block, probe.one);
    float by_warp[4] = {}, by_warpgroup[4] = {};
    const uint32_t operand = tile + x_tile::operand_offset(lane);
    device::multiply_sparse<Value, 0>(by_warp, values[0], device::load_matrices(operand), metadata);
    device::multiply_sparse<Value, 1>(
        by_warp, values[1], device::load_matrices(operand ^ x_tile::second_fragment), metadata);
    write_sums(target + block * warpgroup_threads * 4, by_warp);
    warpgroup_fence();
    Warpgroup<Value, 8>::template sparse<0>(by_warpgroup, values[0], tile_descriptor(tile), metadata);
    Warpgroup<Value, 8>::template sparse<1>(
        by_warpgroup, values[1], tile_descriptor(tile + x_tile::second_fragment), metadata);
    warpgroup_commit();
    warpgroup_wait<0>();
    write_sums(target + (blocks + block) * warpgroup_threads * 4, by_warpgroup);
  }
}

std::vector<uint8_t> read_file(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) check(1, path);
  std::vector<uint8_t> bytes;
  uint8_t part[1 << 16];
  for (size_t got; (got = std::fread(part, 1, sizeof part, file)) > 0;) {
    bytes.insert(bytes.end(), part, part + got);
  }
  std::fclose(file);
  return bytes;
}

}  // namespace
}  // namespace micro

int main(int count, char** arguments) {
  using namespace micro;
  if (count != 4) {
    std::fprintf(stderr, "expected: one_hot_probe bf16|fp16 UNITS SUMS\n");
    return 2;
  }
  const bool bf16 = std::strcmp(arguments[1], "bf16") == 0;
  const std::vector<uint8_t> units = read_file(arguments[2]);
  Launch how{};
  how.blocks = static_cast<int64_t>(units.size()) / fragment24::unit_bytes;
  how.threads = warpgroup_threads;
  how.shared_bytes = x_tile::bytes(1);
  uint8_t* source = allocate<uint8_t>(units.size());
  MICRO_CHECK(cudaMemcpy(source, units.data(), units.size(), cudaMemcpyHostToDevice));
  // Not a number where nothing is written.
  std::vector<float> sums(static_cast<size_t>(how.blocks) * sums_of_unit);
  float* target = allocate<float>(sums.size(), 0xFF);
  const Probe probe{source, target, bf16 ? 0x3F80u : 0x3C00u};
  MICRO_CHECK(bf16 ? launch_kernel<probe_kernel<Bf16>>(how, probe)
                   : launch_kernel<probe_kernel<Fp16>>(how, probe));
  MICRO_CHECK(cudaDeviceSynchronize());
  MICRO_CHECK(cudaMemcpy(sums.data(), target, sums.size() * sizeof(float), cudaMemcpyDeviceToHost));
  std::FILE* file = std::fopen(arguments[3], "wb");
  if (file == nullptr) check(1, arguments[3]);
  std::fwrite(sums.data(), sizeof(float), sums.size(), file);
  std::fclose(file);
  return 0;
}
