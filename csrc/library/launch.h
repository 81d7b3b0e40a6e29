// How kernels are launched: shared memory up to the device's limit, clusters, programmatic
// dependent launch.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "library/predecessor.h"
#include "secateur/core/status.h"

namespace secateur {

struct Launch {
  int64_t blocks;
  int threads;
  int shared_bytes;
  int cluster = 1;          // thread blocks, at most eight; divides `blocks`
  bool dependent = false;   // programmatic dependent launch, where the code and the stream allow it
  int device = 0;           // the current one
  cudaStream_t stream = nullptr;
};

// What a kernel can do on a device.
struct KernelFacts {
  int shared_bytes = 0;    // a thread block
  bool for_hopper = false;  // its code knows clusters and dependent launch
};

// Lets a kernel use all the shared memory of the current device.
template <typename Kernel>
cudaError_t prepare(Kernel* kernel, int device, KernelFacts* facts) {
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  // Code for sm_80, and what the driver makes of it for newer devices, has empty functions in place
  // of the wait for the kernel in front.
  facts->for_hopper = attributes.ptxVersion >= 90;
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&facts->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                   device);
  }
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 facts->shared_bytes);
  }
  // The division between shared memory and L1 cache is then the same for all kernels: where it
  // changes, a multiprocessor first has to run empty.
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
  }
  return error;
}

// The driver is asked once a kernel and device.
template <auto Kernel>
cudaError_t facts_of(int device, KernelFacts* facts) {
  constexpr int devices = 64;
  static std::atomic<int> known[devices];  // shared bytes, negative where not for Hopper
  const bool remembered = device >= 0 && device < devices;
  const int found = remembered ? known[device].load(std::memory_order_relaxed) : 0;
  if (found != 0) {
    *facts = {found < 0 ? -found : found, found > 0};
    return cudaSuccess;
  }
  const cudaError_t error = prepare(Kernel, device, facts);
  if (error == cudaSuccess && remembered) {
    known[device].store(facts->for_hopper ? facts->shared_bytes : -facts->shared_bytes,
                        std::memory_order_relaxed);
  }
  return error;
}

// Launches `kernel` with one argument; a code of SecateurError or of the CUDA runtime.
template <auto Kernel, typename Argument>
int launch_kernel(const Launch& launch, const Argument& argument) {
  KernelFacts facts;
  const cudaError_t error = facts_of<Kernel>(launch.device, &facts);
  if (error != cudaSuccess) return static_cast<int>(error);
  if (launch.shared_bytes > facts.shared_bytes) return SECATEUR_SHARED_MEMORY;
  if (launch.cluster > 1 && !facts.for_hopper) return SECATEUR_NO_CLUSTERS;
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
  if (launch.dependent && facts.for_hopper && may_depend(launch.stream)) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  return static_cast<int>(cudaLaunchKernelEx(&config, Kernel, argument));
}

}  // namespace secateur
