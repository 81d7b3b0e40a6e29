// Where the time of a layer goes inside the skinny kernel: a chain of layers in a CUDA graph, with
// dependent launch and cold weights as a model has them, whose thread blocks mark when they pass
// the points of csrc/include/secateur/device/marks.h.
//
//     timeline MARKS TOKENS...
//
// Prints a JSON line for each configuration and number of tokens, and appends to the file MARKS its
// int64 numbers: clocks before and after the chain [2][multiprocessor][reading][own clock,
// nanoseconds], and marks [layer][thread block][point, and then multiprocessor + 1].
// bench/timeline.py reads them.
#include "marked.h"
// The kernel, with marks.
#include "graph.h"
#include "random_values.h"
#include "sparse24_skinny/launch.h"
#include "timeline_cases.h"

namespace micro {
namespace {

namespace skinny = secateur::skinny;
namespace fragment24 = secateur::fragment24;

constexpr int layers = 12;
constexpr int laps = 5;
constexpr int most_blocks = 512;
constexpr int most_columns = 28672;  // of x and y

struct Marked {
  skinny::Problem problem;
  Mark* marks;
};

template <typename Shape>
__global__ __launch_bounds__(skinny::max_threads<Shape>, skinny::blocks_per_sm<Shape>)
void marked_kernel(const __grid_constant__ Marked marked) {
  begin_marks(marked.marks);
  skinny::run_block<secateur::Bf16, Shape, device::has_bulk_copies>(
      marked.problem, device::shared_address(marked_shared + marks_shared_bytes));
}

// Values near what keeps sums of any layer at the size of x, and sound metadata.
__global__ void fill_weights(secateur::Words4* words, int64_t count) {
  constexpr int tile = fragment24::tile_bytes / 16, values = fragment24::value_bytes / 16;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
    secateur::Words4 v = random_words(static_cast<uint32_t>(i));
    for (uint32_t& word : v.word) {
      word = i % tile < values ? (word & 0x807F807Fu) | 0x3C803C80u : columns_0_and_2;
    }
    words[i] = v;
  }
}
__global__ void fill_tokens(secateur::Words4* words, int64_t count) {
  const int64_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) words[i] = random_words(static_cast<uint32_t>(i));
}

int64_t bytes_of_layer(const Case& c) {
  const int steps = fragment24::steps(c.columns);
  return fragment24::unit_offset(fragment24::panels(c.rows), 0, steps);
}

// Everything that the layers of any case need.
class Buffers {
 public:
  Buffers() {
    int64_t bytes = 0;
    for (const Case& c : cases) bytes = std::max(bytes, layers * bytes_of_layer(c));
    weights_ = allocate<uint8_t>(static_cast<size_t>(bytes));
    fill_weights<<<multiprocessors() * 4, 256>>>(reinterpret_cast<secateur::Words4*>(weights_),
                                                 bytes / 16);
    for (uint8_t*& side : sides_) {
      constexpr int chunks = most_tokens * most_columns * 2 / 16;
      side = allocate<uint8_t>(chunks * 16);
      fill_tokens<<<chunks / 256, 256>>>(reinterpret_cast<secateur::Words4*>(side), chunks);
    }
    workspace_ = allocate<uint8_t>(workspace_bytes);
    counters_ = allocate<uint32_t>(counter_count);
    marks = allocate<Mark>(mark_count);
    clocks = allocate<int64_t>(2 * clock_count());
    MICRO_CHECK(cudaDeviceSynchronize());
  }

  static constexpr size_t mark_count = layers * most_blocks * marks_of_block;
  static size_t clock_count() { return static_cast<size_t>(multiprocessors()) * readings * 2; }

  // A layer reads what the one in front of it wrote.
  skinny::Problem problem(const Case& c, int tokens, int lead, int layer) const {
    SecateurSparse24Skinny a = arguments_of(c, tokens, lead);
    a.linear.x = sides_[layer % 2];
    a.linear.y = sides_[1 - layer % 2];
    a.weight = weights_ + layer % layers * bytes_of_layer(c);
    a.workspace = workspace_;
    a.counters = counters_;
    MICRO_CHECK(skinny::check_configuration(a));
    const skinny::Problem p = skinny::problem_of(a);
    const int64_t slot = skinny::slot_floats(c.warps, row_tiles, skinny::token_tiles(tokens)) * 4;
    if (c.cluster == 1 && (p.schedule.slots() * slot > static_cast<int64_t>(workspace_bytes) ||
                           p.schedule.row_blocks * c.warps > static_cast<int>(counter_count))) {
      check(1, "a case needs more workspace or counters");
    }
    return p;
  }

  Mark* marks;
  int64_t* clocks;

 private:
  static constexpr size_t workspace_bytes = 64 << 20;
  static constexpr size_t counter_count = 1 << 16;
  uint8_t* weights_;
  uint8_t* sides_[2];
  uint8_t* workspace_;
  uint32_t* counters_;
};

template <typename Shape>
void launch_layer(const Marked& marked, bool dependent, cudaStream_t stream) {
  const skinny::Problem& p = marked.problem;
  Launch how{};
  how.blocks = p.schedule.blocks;
  how.threads = (p.warps + 1) * secateur::warp_lanes;
  how.shared_bytes = marks_shared_bytes + skinny::shared_bytes(p.warps, Shape::row_tiles,
                                                               Shape::token_tiles, p.stages,
                                                               p.cluster);
  how.cluster = p.cluster;
  how.dependent = dependent;
  how.stream = stream;
  MICRO_CHECK(launch_kernel<marked_kernel<Shape>>(how, marked));
}

void launch_clocks(int64_t* clocks, cudaStream_t stream) {
  Launch how{};
  how.blocks = multiprocessors();
  how.threads = 1;
  how.shared_bytes = 200 * 1024;  // one a multiprocessor
  how.stream = stream;
  MICRO_CHECK(launch_kernel<read_clocks>(how, Clocks{clocks}));
}

template <typename Shape>
class Timeline {
 public:
  Timeline(const Buffers& buffers, const Case& c, int tokens, int lead)
      : buffers_(buffers), case_(c), tokens_(tokens), lead_(lead) {}

  // A layer's time where nothing is marked.
  double plain_seconds() const {
    const Graph graph([&](cudaStream_t stream) { launch_layers(laps * layers, nullptr, stream); });
    return seconds([&](cudaStream_t stream) { graph.launch(stream); }) / (laps * layers);
  }

  // Leaves marks and clocks in the buffers.
  void mark() const {
    const Graph graph([&](cudaStream_t stream) {
      MICRO_CHECK(cudaMemsetAsync(buffers_.marks, 0, buffers_.mark_count * sizeof(Mark), stream));
      launch_clocks(buffers_.clocks, stream);
      launch_layers(layers, buffers_.marks, stream);
      launch_clocks(buffers_.clocks + buffers_.clock_count(), stream);
    });
    for (int replay = 0; replay < 4; ++replay) graph.launch(nullptr);
    MICRO_CHECK(cudaDeviceSynchronize());
  }

 private:
  void launch_layers(int count, Mark* marks, cudaStream_t stream) const {
    for (int i = 0; i < count; ++i) {
      Mark* mine = marks == nullptr ? nullptr : marks + i * case_.blocks * marks_of_block;
      const Marked marked{buffers_.problem(case_, tokens_, lead_, i), mine};
      launch_layer<Shape>(marked, i > 0, stream);
    }
  }

  const Buffers& buffers_;
  Case case_;
  int tokens_, lead_;
};

template <typename T>
void append(std::FILE* file, const T* source, size_t count) {
  std::vector<T> here(count);
  MICRO_CHECK(cudaMemcpy(here.data(), source, count * sizeof(T), cudaMemcpyDeviceToHost));
  if (std::fwrite(here.data(), sizeof(T), count, file) != count) check(1, "writing marks");
}

template <typename Shape>
void run(const Buffers& buffers, const Case& c, int tokens, int lead, std::FILE* file) {
  const Timeline<Shape> timeline(buffers, c, tokens, lead);
  const double plain = timeline.plain_seconds();
  timeline.mark();
  append(file, buffers.clocks, 2 * buffers.clock_count());
  append(file, buffers.marks, static_cast<size_t>(layers) * c.blocks * marks_of_block);
  std::fflush(file);
  std::printf(
      "{\"rows\": %d, \"columns\": %d, \"tokens\": %d, \"warps\": %d, \"row_tiles\": %d, "
      "\"stages\": %d, \"blocks\": %d, \"cluster\": %d, \"lead\": %d, \"bytes\": %lld, "
      "\"layers\": %d, \"multiprocessors\": %d, \"plain_us\": %.6g}\n",
      c.rows, c.columns, tokens, c.warps, row_tiles, c.stages, c.blocks, c.cluster, lead,
      static_cast<long long>(bytes_of_layer(c)), layers, multiprocessors(), plain * 1e6);
  std::fflush(stdout);
}

}  // namespace
}  // namespace micro

int main(int count, char** arguments) {
  using namespace micro;
  std::FILE* file = count > 2 ? std::fopen(arguments[1], "ab") : nullptr;
  if (file == nullptr) {
    std::fprintf(stderr, "expected: timeline MARKS TOKENS...\n");
    return 2;
  }
  const Buffers buffers;
  for (int i = 2; i < count; ++i) {
    const int tokens = std::atoi(arguments[i]);
    if (tokens < 1 || tokens > most_tokens) check(1, "expected 1 to 16 tokens");
    for (const Case& c : cases) {
      for (int lead : c.leads()) {
        if (tokens <= 8) {
          run<skinny::Shape<row_tiles, 1>>(buffers, c, tokens, lead, file);
        } else {
          run<skinny::Shape<row_tiles, 2>>(buffers, c, tokens, lead, file);
        }
      }
    }
  }
  std::fclose(file);
  return 0;
}
