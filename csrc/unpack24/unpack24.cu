// secateur_unpack24: checks, launch.
#include <cuda_runtime.h>

#include "library/device_guard.h"
#include "secateur/core.h"
#include "secateur/unpack24.h"

namespace {

using secateur::ceil_div;
using secateur::warp_lanes;
using secateur::unpack24::Problem;
using secateur::unpack24::tiles;

constexpr int warps = 8;

__global__ __launch_bounds__(warps* warp_lanes) void unpack24_kernel(
    const __grid_constant__ Problem problem) {
  const int64_t first = static_cast<int64_t>(secateur::device::block()) * warps;
  const int64_t index = first + threadIdx.x / warp_lanes;
  if (index < tiles(problem)) {
    secateur::unpack24::unpack_tile(problem, index, threadIdx.x % warp_lanes);
  }
}

}  // namespace

int secateur_unpack24(const SecateurUnpack24* a, void* stream) {
  if (const int error = secateur_unpack24_check(a)) return error;
  const secateur::DeviceGuard guard(a->device);
  if (guard.error()) return guard.error();
  const Problem problem{static_cast<const uint8_t*>(a->weight), static_cast<uint16_t*>(a->dense),
                        static_cast<int>(a->rows), static_cast<int>(a->columns), a->gate_up != 0};
  const int64_t blocks = ceil_div(tiles(problem), warps);
  if (blocks > INT32_MAX) return SECATEUR_BAD_SHAPE;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(warps * warp_lanes);
  config.stream = static_cast<cudaStream_t>(stream);
  return static_cast<int>(cudaLaunchKernelEx(&config, unpack24_kernel, problem));
}
