// What this GPU's mma.sp m16n8k32 and wgmma.sp m64n32k32 make of packed units: every sum is one weight
// as the hardware sees it.
//
//     one_hot_probe bf16|fp16 UNITS SUMS
//
// UNITS holds units of 64 x 64 weights (4608 bytes each). SUMS becomes float32 [unit][instruction]
// [eight columns][thread of a warpgroup][4]: token j of the eight is one at their column j.
// bench/one_hot_probe.py makes the one and reads the other.
#include <cstring>

#include "harness.h"
#include "probe.h"

namespace micro {
namespace {

template <typename Value>
__global__ __launch_bounds__(warpgroup_threads) void probe_kernel(
    const __grid_constant__ Probe probe) {
  extern __shared__ __align__(128) uint8_t shared[];
  probe_unit<Value>(probe, static_cast<uint32_t>(__cvta_generic_to_shared(shared)));
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
  how.shared_bytes = probe_shared_bytes;
  uint8_t* source = allocate<uint8_t>(units.size());
  MICRO_CHECK(cudaMemcpy(source, units.data(), units.size(), cudaMemcpyHostToDevice));
  // Not a number where nothing is written.
  std::vector<float> sums(static_cast<size_t>(how.blocks) * sums_of_unit);
  float* target = allocate<float>(sums.size(), 0xFF);
  const Probe probe{source, target, bf16 ? 0x3F80u : 0x3C00u};
  MICRO_CHECK(bf16 ? launch_kernel<probe_kernel<secateur::Bf16>>(how, probe)
                   : launch_kernel<probe_kernel<secateur::Fp16>>(how, probe));
  MICRO_CHECK(cudaDeviceSynchronize());
  MICRO_CHECK(cudaMemcpy(sums.data(), target, sums.size() * sizeof(float), cudaMemcpyDeviceToHost));
  std::FILE* file = std::fopen(arguments[3], "wb");
  if (file == nullptr) check(1, arguments[3]);
  std::fwrite(sums.data(), sizeof(float), sums.size(), file);
  std::fclose(file);
  return 0;
}
