// What the microbenchmarks have in common: the device, timing, and one JSON line a measurement.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "library/launch.h"
#include "secateur/common.h"

namespace micro {

using secateur::Launch;
using secateur::launch_kernel;

inline void check(int error, const char* what) {
  if (error == 0) return;
  std::fprintf(stderr, "%s: error %d: %s\n", what, error,
               cudaGetErrorString(static_cast<cudaError_t>(error)));
  std::exit(1);
}
#define MICRO_CHECK(call) ::micro::check(static_cast<int>(call), #call)

// One measurement; bench/microbench.py puts the prediction beside it.
inline void report(const char* name, double value, const char* unit) {
  std::printf("{\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"}\n", name, value, unit);
  std::fflush(stdout);
}

inline int multiprocessors() {
  int count = 0;
  MICRO_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

// Thread blocks for one wave of clusters: a cluster lies within a group of multiprocessors, so
// that some may stay idle.
template <typename Kernel>
int blocks_of_one_wave(Kernel* kernel, int threads, int shared_bytes, int cluster) {
  if (cluster == 1) return multiprocessors();
  // Not for a result: a kernel may use all shared memory only after this.
  MICRO_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   shared_bytes));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  MICRO_CHECK(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
  const int wave = multiprocessors() / cluster;
  return std::min(clusters, wave) * cluster;
}

template <typename T>
T median(std::vector<T> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Seconds that `work(stream)` takes on the device: the median of a few, after one that is not timed.
template <typename Work>
double seconds(Work work, int rounds = 7) {
  cudaStream_t stream;
  cudaEvent_t start, stop;
  MICRO_CHECK(cudaStreamCreate(&stream));
  MICRO_CHECK(cudaEventCreate(&start));
  MICRO_CHECK(cudaEventCreate(&stop));
  std::vector<float> milliseconds;
  for (int round = 0; round <= rounds; ++round) {
    MICRO_CHECK(cudaEventRecord(start, stream));
    work(stream);
    MICRO_CHECK(cudaEventRecord(stop, stream));
    MICRO_CHECK(cudaEventSynchronize(stop));
    float taken = 0;
    MICRO_CHECK(cudaEventElapsedTime(&taken, start, stop));
    if (round > 0) milliseconds.push_back(taken);
  }
  MICRO_CHECK(cudaGetLastError());
  MICRO_CHECK(cudaEventDestroy(start));
  MICRO_CHECK(cudaEventDestroy(stop));
  MICRO_CHECK(cudaStreamDestroy(stream));
  return median(milliseconds) * 1e-3;
}

// Memory of the device, filled with `byte` so that no page is read before it was written.
template <typename T>
T* allocate(size_t count, int byte = 0) {
  T* pointer = nullptr;
  MICRO_CHECK(cudaMalloc(&pointer, count * sizeof(T)));
  MICRO_CHECK(cudaMemset(pointer, byte, count * sizeof(T)));
  return pointer;
}

// The median over thread blocks of what each wrote: clocks of its own multiprocessor.
inline double median_clocks(const int64_t* clocks, int blocks) {
  std::vector<int64_t> here(static_cast<size_t>(blocks));
  MICRO_CHECK(cudaMemcpy(here.data(), clocks, here.size() * sizeof(int64_t),
                         cudaMemcpyDeviceToHost));
  return static_cast<double>(median(here));
}

// Clocks of a part of a kernel, by thread 0 of each thread block.
__device__ __forceinline__ int64_t clock_now() {
  int64_t v;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(v)::"memory");
  return v;
}

}  // namespace micro
