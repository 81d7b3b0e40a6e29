// How fast a row-major matrix can be read from memory by boxes of the tensor memory accelerator, by
// their shape, the ring, the pitch of the rows, and how much the L2 cache asks for at a time.
#include <string>

#include "box_stream.h"
#include "harness.h"
#include "library/tensor_map.h"

namespace micro {
namespace {

constexpr double tera = 1e-12;

__global__ __launch_bounds__(64) void box_kernel(const __grid_constant__ BoxStream s) {
  extern __shared__ __align__(1024) uint8_t shared[];
  run_boxes(s, device::shared_address(shared));
}

struct Case {
  int columns, box_rows, stage_boxes, stages;
  CUtensorMapL2promotion promotion;
  const char* asked;  // what that is
};

// As library/tensor_map.h has it but for what the L2 cache asks for.
void encode(const Case& c, const uint8_t* matrix, int64_t rows, device::TensorMap* map) {
  const cuuint64_t size[] = {static_cast<cuuint64_t>(c.columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {2ull * c.columns};
  const cuuint32_t box[] = {box_columns, static_cast<cuuint32_t>(c.box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const auto encode = secateur::encode_function();
  MICRO_CHECK(encode == nullptr ? cudaErrorNotSupported : cudaSuccess);
  const CUresult result = encode(
      reinterpret_cast<CUtensorMap*>(map), CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
      const_cast<uint8_t*>(matrix), size, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, c.promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  MICRO_CHECK(result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue);
}

void measure(const Case& c, const uint8_t* matrix, int64_t bytes) {
  BoxStream s{};
  const int64_t all = bytes / (2 * c.columns) / c.box_rows;
  const int64_t row_blocks = all - all % multiprocessors();  // as many for each
  encode(c, matrix, row_blocks * c.box_rows, &s.map);
  s.row_blocks = static_cast<int>(row_blocks);
  s.box_rows = c.box_rows, s.stage_boxes = c.stage_boxes, s.stages = c.stages;
  s.row_stages = c.columns / (box_columns * c.stage_boxes);
  s.blocks = multiprocessors();
  Launch how{};
  how.blocks = s.blocks;
  how.threads = 64;
  how.shared_bytes = shared_bytes(s);
  const double taken = seconds([&](cudaStream_t stream) {
    how.stream = stream;
    MICRO_CHECK(launch_kernel<box_kernel>(how, s));
  });
  const std::string name = "memory read, boxes of " + std::to_string(c.box_rows) + " rows, " +
                           std::to_string(c.stage_boxes) + " a stage, ring of " +
                           std::to_string(c.stages) + ", rows of " +
                           std::to_string(c.columns / 512) + " KB, L2 asks for " + c.asked;
  report(name.c_str(),
         static_cast<double>(row_blocks) * c.box_rows * 2 * c.columns / taken * tera, "TB/s");
}

}  // namespace
}  // namespace micro

int main() {
  using namespace micro;
  constexpr auto none = CU_TENSOR_MAP_L2_PROMOTION_NONE, by128 = CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                 by256 = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
  // As the kernels have it, then one thing after the other changed.
  const Case cases[] = {
      {2048, 32, 4, 5, by256, "256 B"},  {2048, 32, 4, 5, by128, "128 B"},
      {2048, 32, 4, 5, none, "no more"}, {2048, 16, 4, 10, by256, "256 B"},
      {2048, 64, 4, 3, by256, "256 B"},  {2048, 32, 4, 10, by256, "256 B"},
      {2048, 32, 8, 3, by256, "256 B"},  {2048, 16, 8, 5, by256, "256 B"},
      {8192, 32, 4, 5, by256, "256 B"},  {8192, 64, 4, 3, by256, "256 B"},
  };
  constexpr int64_t bytes = 2'000'000'000;
  const uint8_t* matrix = allocate<uint8_t>(bytes, 1);
  for (const Case& c : cases) measure(c, matrix, bytes);
  return 0;
}
