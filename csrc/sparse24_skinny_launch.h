// How an instance of the skinny kernel is launched. One source file a value type includes this, so
// that they compile side by side.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

#include "secateur/core.h"
#include "secateur/skinny/block.h"

namespace secateur::skinny {

// Two thread blocks share a multiprocessor where the sums leave room for that: 96 registers each.
template <typename Shape>
constexpr int blocks_per_sm = Shape::row_tiles * Shape::token_tiles <= 8 ? 2 : 1;

template <typename Shape>
constexpr int max_threads = (max_warps(Shape::row_tiles, Shape::token_tiles) + 1) * warp_lanes;

template <typename Value, typename Shape>
__global__ __launch_bounds__(max_threads<Shape>, blocks_per_sm<Shape>) void kernel(
    const __grid_constant__ Problem problem) {
  extern __shared__ __align__(128) uint8_t shared[];
  run_block<Value, Shape, device::has_bulk_copies>(
      problem, static_cast<uint32_t>(__cvta_generic_to_shared(shared)));
}

// Lets a kernel use all the shared memory of the current device; asks the driver once a device.
template <typename Kernel>
cudaError_t allow_shared_memory(Kernel* kernel, int device, std::atomic<int>* limits, int* limit) {
  constexpr int devices = 64;
  const bool remembered = device >= 0 && device < devices;
  *limit = remembered ? limits[device].load(std::memory_order_relaxed) : 0;
  if (*limit != 0) return cudaSuccess;
  cudaError_t error =
      cudaDeviceGetAttribute(limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, *limit);
  if (error == cudaSuccess && remembered) {
    limits[device].store(*limit, std::memory_order_relaxed);
  }
  return error;
}

template <typename Value, typename Shape>
int launch(const Problem& problem, int device, cudaStream_t stream) {
  static std::atomic<int> limits[64];
  int limit = 0;
  const cudaError_t error = allow_shared_memory(kernel<Value, Shape>, device, limits, &limit);
  if (error != cudaSuccess) return static_cast<int>(error);
  const int bytes =
      shared_bytes(problem.warps, Shape::row_tiles, Shape::token_tiles, problem.stages);
  if (bytes > limit) return SECATEUR_SHARED_MEMORY;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(problem.schedule.blocks));
  config.blockDim = dim3(static_cast<unsigned>((problem.warps + 1) * warp_lanes));
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  return static_cast<int>(cudaLaunchKernelEx(&config, kernel<Value, Shape>, problem));
}

template <typename Value>
int launch_shape(const Problem& problem, int row_tiles, int token_tiles, int device,
                 cudaStream_t stream) {
  switch (16 * row_tiles + token_tiles) {
    case 16 * 2 + 1:
      return launch<Value, Shape<2, 1>>(problem, device, stream);
    case 16 * 2 + 2:
      return launch<Value, Shape<2, 2>>(problem, device, stream);
    case 16 * 2 + 4:
      return launch<Value, Shape<2, 4>>(problem, device, stream);
    case 16 * 2 + 8:
      return launch<Value, Shape<2, 8>>(problem, device, stream);
    case 16 * 4 + 1:
      return launch<Value, Shape<4, 1>>(problem, device, stream);
    case 16 * 4 + 2:
      return launch<Value, Shape<4, 2>>(problem, device, stream);
    case 16 * 4 + 4:
      return launch<Value, Shape<4, 4>>(problem, device, stream);
    case 16 * 4 + 8:
      return launch<Value, Shape<4, 8>>(problem, device, stream);
    default:
      return SECATEUR_BAD_TILES;
  }
}

}  // namespace secateur::skinny
