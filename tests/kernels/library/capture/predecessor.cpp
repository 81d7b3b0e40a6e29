// csrc/library/predecessor.h on a CUDA runtime of a few lines: a stream that is in the state which
// the test asks for.
#include "library/predecessor.h"

namespace {
struct State {
  int error = 0;
  int status = cudaStreamCaptureStatusNone;
  int predecessors = 0;
  int node_type = cudaGraphNodeTypeKernel;
  int edge_type = cudaGraphDependencyTypeDefault;
  bool has_edges = false;
} state;
}  // namespace

extern "C" {

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status,
                                     unsigned long long*, cudaGraph_t*,
                                     const cudaGraphNode_t** nodes,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  static cudaGraphNode_t node[4] = {};
  static cudaGraphEdgeData edge[4];
  for (cudaGraphEdgeData& e : edge) e.type = static_cast<unsigned char>(state.edge_type);
  *status = static_cast<cudaStreamCaptureStatus>(state.status);
  *nodes = state.predecessors ? node : nullptr;
  *edges = state.has_edges ? edge : nullptr;
  *count = state.predecessors;
  return static_cast<cudaError_t>(state.error);
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t, cudaGraphNodeType* type) {
  *type = static_cast<cudaGraphNodeType>(state.node_type);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

// `status`: 0 not capturing, 1 capturing, 2 invalidated.
int test_may_depend(int error, int status, int predecessors, const char* node, int has_edges,
                    int programmatic) {
  state = {};
  state.error = error;
  state.status = status;
  state.predecessors = predecessors;
  state.node_type = node[0] == 'k'   ? cudaGraphNodeTypeKernel
                    : node[0] == 'm' ? cudaGraphNodeTypeMemset
                                     : cudaGraphNodeTypeMemcpy;
  state.has_edges = has_edges != 0;
  state.edge_type = programmatic ? cudaGraphDependencyTypeProgrammatic
                                 : cudaGraphDependencyTypeDefault;
  return secateur::may_depend(nullptr);
}
}
