// Whether the kernel in front allows programmatic dependent launch.
#pragma once

#include <cuda_runtime.h>

namespace secateur {

// On a stream that is not capturing the driver overlaps kernels where it can, and ignores the wish
// elsewhere. In a graph the wish becomes an edge, and such an edge leads from a kernel to a kernel:
// not from a memset, a copy or nothing at all (what starts a graph), and not from several nodes (a
// join). `edge` is null for an ordinary dependency.
inline bool may_depend(cudaStreamCaptureStatus status, size_t predecessors, cudaGraphNodeType type,
                       const cudaGraphEdgeData* edge) {
  if (status == cudaStreamCaptureStatusNone) return true;
  return status == cudaStreamCaptureStatusActive && predecessors == 1 &&
         type == cudaGraphNodeTypeKernel &&
         (edge == nullptr || (edge->type == cudaGraphDependencyTypeDefault &&
                              edge->from_port == cudaGraphKernelNodePortDefault));
}

inline bool may_depend(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaGraphNode_t* nodes = nullptr;
  const cudaGraphEdgeData* edges = nullptr;
  size_t count = 0;
  cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
  cudaError_t error =
      cudaStreamGetCaptureInfo(stream, &status, nullptr, nullptr, &nodes, &edges, &count);
  if (error == cudaSuccess && status == cudaStreamCaptureStatusActive && count == 1) {
    error = cudaGraphNodeGetType(nodes[0], &type);
  }
  if (error == cudaSuccess) return may_depend(status, count, type, edges);
  cudaGetLastError();  // the launch itself will say what is wrong
  return false;
}

}  // namespace secateur
