// Work of a stream as a CUDA graph.
#pragma once

#include "harness.h"

namespace micro {

class Graph {
 public:
  // `enqueue(stream)` is run once as it is, since code is loaded at its first launch and cannot be
  // while a stream is captured, and once to be captured.
  template <typename Enqueue>
  explicit Graph(Enqueue enqueue) {
    MICRO_CHECK(cudaStreamCreate(&stream_));
    enqueue(stream_);
    MICRO_CHECK(cudaStreamSynchronize(stream_));
    cudaGraph_t graph;
    MICRO_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    enqueue(stream_);
    MICRO_CHECK(cudaStreamEndCapture(stream_, &graph));
    MICRO_CHECK(cudaGraphInstantiate(&executable_, graph, 0));
    MICRO_CHECK(cudaGraphDestroy(graph));
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    cudaGraphExecDestroy(executable_);
    cudaStreamDestroy(stream_);
  }

  void launch(cudaStream_t stream) const { MICRO_CHECK(cudaGraphLaunch(executable_, stream)); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_;
};

}  // namespace micro
