// The stream of stream.h as a kernel.
#pragma once

#include "harness.h"
#include "stream.h"

namespace micro {

template <int Cluster>
__global__ __launch_bounds__(64) void stream_kernel(const __grid_constant__ Stream s) {
  extern __shared__ __align__(128) uint8_t shared[];
  run_stream<Cluster>(s, static_cast<uint32_t>(__cvta_generic_to_shared(shared)));
}

}  // namespace micro
