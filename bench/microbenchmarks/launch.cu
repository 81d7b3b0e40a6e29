// What a launch costs in a CUDA graph, with and without programmatic dependent launch: kernels that
// do nothing, and kernels that stream 10 MB each, as a decode step does layer after layer.
#include <string>

#include "graph.h"
#include "stream_kernel.h"

namespace micro {
namespace {

constexpr int threads = 288;
constexpr int launches = 200;

struct Nothing {
  uint32_t* sink;
};

// Reads what the one before wrote: that is what the order is there for.
__global__ __launch_bounds__(threads) void nothing_kernel(const __grid_constant__ Nothing n) {
  device::let_successor_start();
  device::wait_for_predecessor();
  if (device::block() == 0 && device::thread() == 0) *n.sink += 1;
}

// Seconds of one of the `launches` that `enqueue(stream, index)` puts into a graph.
template <typename Enqueue>
double in_a_graph(Enqueue enqueue) {
  const Graph graph([&](cudaStream_t stream) {
    for (int i = 0; i < launches; ++i) enqueue(stream, i);
  });
  return seconds([&](cudaStream_t stream) { graph.launch(stream); }, 15) / launches;
}

double nothing(bool dependent, int cluster, uint32_t* sink) {
  Launch how{};
  how.blocks = multiprocessors() / 8 * 8;
  how.threads = threads;
  how.shared_bytes = 97 * 1024;
  how.cluster = cluster;
  return in_a_graph([&](cudaStream_t stream, int i) {
    how.stream = stream;
    how.dependent = dependent && i > 0;
    MICRO_CHECK(launch_kernel<nothing_kernel>(how, Nothing{sink}));
  });
}

// A layer of 10 MB in equal parts, each launch another one of `layers`.
double streaming(bool dependent, bool prefetch, const uint8_t* source, int layers, int64_t units,
                 uint32_t* sink) {
  Launch how{};
  how.blocks = multiprocessors();
  how.threads = 64;
  Stream s{};
  s.units = units, s.stages = 5, s.stage_units = 4;
  s.block_units = s.block_start = units / how.blocks;
  s.read_once = true, s.prefetch = prefetch, s.sink = sink;
  how.shared_bytes = shared_bytes(s);
  return in_a_graph([&](cudaStream_t stream, int i) {
    s.source = source + i % layers * units * unit_bytes;
    how.stream = stream;
    how.dependent = dependent && i > 0;
    MICRO_CHECK(launch_kernel<stream_kernel<1>>(how, s));
  });
}

}  // namespace
}  // namespace micro

int main() {
  using namespace micro;
  uint32_t* sink = allocate<uint32_t>(1);
  report("launch of nothing", nothing(false, 1, sink) * 1e6, "us");
  report("launch of nothing, dependent", nothing(true, 1, sink) * 1e6, "us");
  report("launch of nothing, clusters of 8", nothing(false, 8, sink) * 1e6, "us");
  report("launch of nothing, clusters of 8, dependent", nothing(true, 8, sink) * 1e6, "us");
  // Whole stages for every thread block: 10 MB, or a little less, and four times as much. Their
  // difference is the rate; what a layer takes beyond its bytes at that rate is its fixed cost.
  const int64_t step = 4LL * multiprocessors();
  const int64_t units = 10'000'000 / unit_bytes / step * step;
  constexpr int layers = 60;
  const uint8_t* source = allocate<uint8_t>(layers * units * unit_bytes, 1);
  const double bytes = static_cast<double>(units) * unit_bytes;
  report("bytes of a streamed layer", bytes * 1e-6, "MB");
  struct Case {
    const char* name;
    bool dependent, prefetch;
  };
  for (const Case& c : {Case{"", false, false}, Case{", dependent", true, false},
                        Case{", dependent with prefetch", true, true}}) {
    const double small = streaming(c.dependent, c.prefetch, source, layers, units, sink);
    const double large = streaming(c.dependent, c.prefetch, source, layers / 4, 4 * units, sink);
    const double rate = 3 * bytes / (large - small);
    const std::string name = c.name;
    report(("layer of 10 MB" + name).c_str(), small * 1e6, "us");
    report(("rate of layers" + name).c_str(), rate * 1e-12, "TB/s");
    report(("fixed cost of a layer" + name).c_str(), (small - bytes / rate) * 1e6, "us");
  }
  return 0;
}
