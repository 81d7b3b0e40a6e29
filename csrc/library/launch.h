// How kernels are launched: shared memory up to the device's limit, clusters, programmatic dependent
// launch.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "secateur/core/status.h"

namespace secateur {

struct Launch {
  int64_t blocks;
  int threads;
  int shared_bytes;
  int cluster = 1;          // thread blocks; divides `blocks`
  bool dependent = false;   // programmatic dependent launch
  int device = 0;           // the current one
  cudaStream_t stream = nullptr;
};

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
  // Clusters of more than eight thread blocks.
  if (error == cudaSuccess) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    cudaGetLastError();  // devices without clusters refuse, and need it not
  }
  if (error == cudaSuccess && remembered) {
    limits[device].store(*limit, std::memory_order_relaxed);
  }
  return error;
}

// Launches `kernel` with one argument; a code of SecateurError or of the CUDA runtime.
template <auto Kernel, typename Argument>
int launch_kernel(const Launch& launch, const Argument& argument) {
  static std::atomic<int> limits[64];
  int limit = 0;
  const cudaError_t error = allow_shared_memory(Kernel, launch.device, limits, &limit);
  if (error != cudaSuccess) return static_cast<int>(error);
  if (launch.shared_bytes > limit) return SECATEUR_SHARED_MEMORY;
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(launch.blocks));
  config.blockDim = dim3(static_cast<unsigned>(launch.threads));
  config.dynamicSmemBytes = static_cast<size_t>(launch.shared_bytes);
  config.stream = launch.stream;
  config.attrs = attributes;
  if (launch.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(launch.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (launch.dependent) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  return static_cast<int>(cudaLaunchKernelEx(&config, Kernel, argument));
}

}  // namespace secateur
