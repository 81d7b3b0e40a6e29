// How fast weights can be read: from memory and from the L2 cache, by rings of bulk copies and by
// plain loads, and what sharing reads in clusters brings.
#include <string>

#include "stream_kernel.h"

namespace micro {
namespace {

constexpr double tera = 1e-12;

// Bytes a second that arrive in shared memory.
template <int Cluster>
double streamed(Stream s, int blocks_per_multiprocessor, int threads = 64) {
  const int shared = shared_bytes(s);
  const int wave = blocks_of_one_wave(stream_kernel<Cluster>, threads, shared, Cluster);
  Launch how{};
  how.blocks = wave * blocks_per_multiprocessor;
  how.threads = threads;
  how.shared_bytes = shared;
  how.cluster = Cluster;
  // Groups that read the same, and equal parts of the whole for each where all is read once.
  const int64_t groups = how.blocks / Cluster;
  if (s.read_once) s.block_units = s.units / groups / s.stage_units * s.stage_units;
  s.block_start = s.read_once ? s.block_units : s.units / groups;
  const double taken = seconds([&](cudaStream_t stream) {
    how.stream = stream;
    MICRO_CHECK(launch_kernel<stream_kernel<Cluster>>(how, s));
  });
  return static_cast<double>(how.blocks) * s.block_units * unit_bytes / taken;
}

struct Loads {
  const uint4* source;
  int64_t words;  // of 16 bytes, a power of two or a multiple of the grid's step
  int64_t steps;  // of eight loads a thread
  uint32_t* sink;
};

// Eight independent loads of 16 bytes a thread and step; `sink` is only there so that they are made.
__global__ __launch_bounds__(1024) void load_kernel(const __grid_constant__ Loads l) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  uint32_t all = 0;
  for (int64_t step = 0; step < l.steps; ++step) {
    uint4 v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v[i] = __ldcg(l.source + at);
      at += threads;
      if (at >= l.words) at -= l.words;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) all ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  if (all == 0x12345678u) *l.sink = all;
}

double loaded(Loads l) {
  Launch how{};
  how.blocks = 2 * multiprocessors();
  how.threads = 1024;
  const int64_t bytes = how.blocks * how.threads * l.steps * 8 * 16;
  const double taken = seconds([&](cudaStream_t stream) {
    how.stream = stream;
    MICRO_CHECK(launch_kernel<load_kernel>(how, l));
  });
  return bytes / taken;
}

void from_memory(const uint8_t* source, int64_t units, uint32_t* sink) {
  struct Case {
    const char* name;
    int stages, stage_units, blocks;
  };
  const Case cases[] = {
      {"memory read, ring of 5 x 18 KB", 5, 4, 1},
      {"memory read, ring of 11 x 18 KB", 11, 4, 1},
      {"memory read, two rings of 5 x 18 KB", 5, 4, 2},
      {"memory read, ring of 7 x 4.5 KB", 7, 1, 1},
  };
  for (const Case& c : cases) {
    Stream s{};
    s.source = source, s.units = units, s.stages = c.stages, s.stage_units = c.stage_units;
    s.read_once = true;
    report(c.name, streamed<1>(s, c.blocks) * tera, "TB/s");
  }
  const int64_t threads = 2LL * multiprocessors() * 1024;
  const int64_t steps = units * unit_bytes / 16 / threads / 8;
  report("memory read, loads of 16 B",
         loaded({reinterpret_cast<const uint4*>(source), steps * 8 * threads, steps, sink}) * tera,
         "TB/s");
}

template <int Cluster>
void from_cache(const uint8_t* source, int64_t units, const char* name, int stages) {
  Stream s{};
  s.source = source, s.units = units, s.stages = stages, s.stage_units = 4;
  s.block_units = 4 * units;
  const double rate = streamed<Cluster>(s, 1);
  report((std::string("L2 to shared memory, ") + name).c_str(), rate * tera, "TB/s");
  if (Cluster > 1) {
    report((std::string("of which read from L2, ") + name).c_str(), rate / Cluster * tera, "TB/s");
  }
}

}  // namespace
}  // namespace micro

int main() {
  using namespace micro;
  // 2 GB for memory, of which 20 MB for the cache: both partitions of an L2 of 50 MB hold them.
  constexpr int64_t units = 2'000'000'000 / unit_bytes / 4 * 4, cached = 20'000'000 / unit_bytes / 4 * 4;
  const uint8_t* source = allocate<uint8_t>(units * unit_bytes, 1);
  uint32_t* sink = allocate<uint32_t>(1);
  from_memory(source, units, sink);
  from_cache<1>(source, cached, "ring of 5 x 18 KB", 5);
  from_cache<1>(source, cached, "ring of 11 x 18 KB", 11);
  from_cache<2>(source, cached, "shared by 2", 11);
  from_cache<4>(source, cached, "shared by 4", 11);
  const int64_t words = cached * unit_bytes / 16;
  report("L2 to registers, loads of 16 B",
         loaded({reinterpret_cast<const uint4*>(source), words, 128, sink}) * tera, "TB/s");
  return 0;
}
