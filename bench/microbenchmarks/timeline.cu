// Where the time of a layer goes inside the skinny and the wide kernel: a chain of layers in a CUDA
// graph, with dependent launch and cold weights as a model has them, whose thread blocks mark when
// they pass the points of csrc/include/secateur/device/marks.h.
//
//     timeline MARKS TOKENS...
//
// Prints a JSON line for each configuration and number of tokens, and appends to the file MARKS its
// int64 numbers: clocks before and after the chain [2][multiprocessor][reading][own clock,
// nanoseconds], and marks [layer][thread block][point, and then multiprocessor + 1].
// bench/timeline.py reads them.
#include "marked.h"
// The kernels, with marks.
#include "graph.h"
#include "library/tensor_map.h"
#include "random_values.h"
#include "sparse24_skinny/launch.h"
#include "sparse24_wide/launch.h"
#include "timeline_cases.h"

namespace micro {
namespace {

namespace skinny = secateur::skinny;
namespace wide = secateur::wide;
namespace fragment24 = secateur::fragment24;

using secateur::Bf16;

constexpr int layers = 12;
constexpr int laps = 5;

template <typename Problem>
struct Marked {
  Problem problem;
  Mark* marks;
};

template <typename Shape>
__global__ __launch_bounds__(skinny::max_threads<Shape>, skinny::blocks_per_sm<Shape>)
void marked_skinny(const __grid_constant__ Marked<skinny::Problem> marked) {
  begin_marks(marked.marks);
  skinny::run_block<Bf16, Shape, device::has_bulk_copies>(
      marked.problem, device::shared_address(marked_shared + marks_shared_bytes));
}

__global__ __launch_bounds__(WideShape::threads, wide::blocks_per_sm<WideShape>)
void marked_wide(const __grid_constant__ Marked<wide::Problem> marked) {
  begin_marks(marked.marks);
  wide::run_block<Bf16, WideShape>(
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
__global__ void fill_tokens(secateur::Words4* words) {
  const int64_t i = blockIdx.x * blockDim.x + threadIdx.x;
  words[i] = random_words(static_cast<uint32_t>(i));
}

int64_t bytes_of_layer(int64_t rows, int64_t columns) {
  const int steps = fragment24::steps(static_cast<int>(columns));
  return fragment24::unit_offset(fragment24::panels(static_cast<int>(rows)), 0, steps);
}

// Everything that the layers of any case need.
class Buffers {
 public:
  Buffers() {
    int64_t bytes = bytes_of_layer(wide_rows, wide_columns);
    for (const SkinnyCase& c : skinny_cases) {
      bytes = std::max(bytes, bytes_of_layer(c.rows, c.columns));
    }
    weights_ = allocate<uint8_t>(static_cast<size_t>(layers * bytes));
    fill_weights<<<multiprocessors() * 4, 256>>>(reinterpret_cast<secateur::Words4*>(weights_),
                                                 layers * bytes / 16);
    for (uint8_t*& side : sides_) {
      side = allocate<uint8_t>(2 * most_values);
      fill_tokens<<<most_values / 8 / 256, 256>>>(reinterpret_cast<secateur::Words4*>(side));
    }
    workspace_ = allocate<uint8_t>(workspace_bytes);
    counters_ = allocate<uint32_t>(counter_count);
    marks = allocate<Mark>(mark_count);
    clocks = allocate<int64_t>(2 * clock_count());
    MICRO_CHECK(cudaDeviceSynchronize());
  }

  static constexpr size_t mark_count = layers * most_blocks * marks_of_block;
  static size_t clock_count() { return static_cast<size_t>(multiprocessors()) * readings * 2; }

  // What layer `i` works on, for either kernel: it reads what the one in front of it wrote.
  template <typename Arguments>
  Arguments layer(Arguments a, int i) const {
    a.linear.x = sides_[i % 2];
    a.linear.y = sides_[1 - i % 2];
    a.weight = weights_ + i % layers * bytes_of_layer(a.linear.rows, a.linear.columns);
    a.workspace = workspace_;
    a.counters = counters_;
    return a;
  }

  Mark* marks;
  int64_t* clocks;

 private:
  uint8_t* weights_;
  uint8_t* sides_[2];
  uint8_t* workspace_;
  uint32_t* counters_;
};

template <typename Shape>
void launch_skinny(const SecateurSparse24Skinny& a, Mark* marks, bool dependent,
                   cudaStream_t stream) {
  Launch how{};
  how.blocks = a.blocks;
  how.threads = (a.warps + 1) * secateur::warp_lanes;
  how.shared_bytes =
      marks_shared_bytes +
      skinny::shared_bytes(a.warps, Shape::row_tiles, Shape::token_tiles, a.stages, a.cluster);
  how.cluster = a.cluster;
  how.dependent = dependent;
  how.stream = stream;
  const Marked<skinny::Problem> marked{skinny::problem_of(a), marks};
  MICRO_CHECK(launch_kernel<marked_skinny<Shape>>(how, marked));
}

void launch(const SecateurSparse24Skinny& a, Mark* marks, bool dependent, cudaStream_t stream) {
  const auto launch_shape = secateur::token_tiles(a.linear.tokens) == 1
                                ? launch_skinny<skinny::Shape<row_tiles, 1>>
                                : launch_skinny<skinny::Shape<row_tiles, 2>>;
  launch_shape(a, marks, dependent, stream);
}

void launch(const SecateurSparse24Wide& a, Mark* marks, bool dependent, cudaStream_t stream) {
  Launch how{};
  how.blocks = a.blocks;
  how.threads = WideShape::threads;
  how.shared_bytes = marks_shared_bytes + wide::shared_bytes<WideShape>(a.stages);
  how.dependent = dependent;
  how.stream = stream;
  Marked<wide::Problem> marked{wide::problem_of(a), marks};
  MICRO_CHECK(secateur::map_x(a.linear, wide::box_tokens(a), &marked.problem.x));
  MICRO_CHECK(launch_kernel<marked_wide>(how, marked));
}

void launch_clocks(int64_t* clocks, cudaStream_t stream) {
  Launch how{};
  how.blocks = multiprocessors();
  how.threads = 1;
  how.shared_bytes = 200 * 1024;  // one a multiprocessor
  how.stream = stream;
  MICRO_CHECK(launch_kernel<read_clocks>(how, Clocks{clocks}));
}

// A chain of layers of one configuration.
template <typename Arguments>
class Chain {
 public:
  Chain(const Buffers& buffers, const Arguments& arguments)
      : buffers_(buffers), arguments_(arguments) {}

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
      Mark* mine = marks == nullptr ? nullptr : marks + i * arguments_.blocks * marks_of_block;
      launch(buffers_.layer(arguments_, i), mine, i > 0, stream);
    }
  }

  const Buffers& buffers_;
  Arguments arguments_;
};

template <typename T>
void append(std::FILE* file, const T* source, size_t count) {
  std::vector<T> here(count);
  MICRO_CHECK(cudaMemcpy(here.data(), source, count * sizeof(T), cudaMemcpyDeviceToHost));
  if (std::fwrite(here.data(), sizeof(T), count, file) != count) check(1, "writing marks");
}

void print_config(const SecateurSparse24Skinny& a) {
  std::printf("\"kernel\": \"skinny\", \"config\": {\"warps\": %d, \"row_tiles\": %d, "
              "\"stages\": %d, \"blocks\": %d, \"cluster\": %d, \"lead\": %d, "
              "\"ahead\": %d}",
              a.warps, a.row_tiles, a.stages, static_cast<int>(a.blocks), a.cluster, a.lead,
              a.ahead);
}
void print_config(const SecateurSparse24Wide& a) {
  std::printf("\"kernel\": \"wide\", \"config\": {\"warpgroups\": %d, \"panels\": %d, "
              "\"tokens\": %d, \"stages\": %d, \"blocks\": %d, \"waves\": %d, \"late\": %d, "
              "\"ahead\": %d}",
              a.warpgroups, a.panels, a.tile_tokens, a.stages, static_cast<int>(a.blocks),
              static_cast<int>(a.waves), a.late, a.ahead);
}

template <typename Arguments>
void run(const Buffers& buffers, const Arguments& a, std::FILE* file) {
  const Chain<Arguments> chain(buffers, a);
  const double plain = chain.plain_seconds();
  chain.mark();
  append(file, buffers.clocks, 2 * buffers.clock_count());
  append(file, buffers.marks, static_cast<size_t>(layers * a.blocks * marks_of_block));
  std::fflush(file);
  const auto number = [](int64_t value) { return static_cast<long long>(value); };
  std::printf("{\"rows\": %lld, \"columns\": %lld, \"tokens\": %lld, ", number(a.linear.rows),
              number(a.linear.columns), number(a.linear.tokens));
  print_config(a);
  std::printf(", \"bytes\": %lld, \"layers\": %d, \"multiprocessors\": %d, \"plain_us\": %.6g}\n",
              number(bytes_of_layer(a.linear.rows, a.linear.columns)), layers, multiprocessors(),
              plain * 1e6);
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
    for (const SkinnyCase& c : skinny_cases) {
      for (Moments moments : c.moments()) run(buffers, arguments_of(c, tokens, moments), file);
    }
  }
  for (Moments moments : wide_moments) run(buffers, wide_arguments(moments), file);
  std::fclose(file);
  return 0;
}
