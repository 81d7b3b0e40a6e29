// Maps for the tensor memory accelerator. The driver encodes them; it is asked for the function at
// run time, so that the library does not depend on one.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "library/linear_arguments.h"
#include "secateur/device/tensor_copy.h"
#include "secateur/x_tile.h"

namespace secateur {

static_assert(sizeof(device::TensorMap) == sizeof(CUtensorMap), "the same 128 bytes");
static_assert(alignof(device::TensorMap) == alignof(CUtensorMap), "aligned alike");

// Null where the driver has none.
inline decltype(&cuTensorMapEncodeTiled) encode_function() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
    const bool there = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(there ? function : nullptr);
  }();
  return found;
}

// Boxes of 64 columns and `box_rows` rows of a matrix of 16-bit values, in shared memory with their
// pieces of 16 bytes exchanged as x_tile.h says; what lies beyond the matrix is zero. `stride` in
// elements.
inline int map_matrix(int value_type, const void* data, int64_t columns, int64_t rows,
                      int64_t stride, int box_rows, device::TensorMap* map) {
  const auto encode = encode_function();
  if (encode == nullptr) return SECATEUR_NO_TENSOR_MAP;
  const CUtensorMapDataType type = value_type == SECATEUR_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint64_t size[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(2 * stride)};
  const cuuint32_t box[] = {x_tile::columns, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult result =
      encode(reinterpret_cast<CUtensorMap*>(map), type, 2, const_cast<void*>(data), size, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? SECATEUR_OK : SECATEUR_NO_TENSOR_MAP;
}

// The same of x.
inline int map_x(const SecateurLinear& a, int box_tokens, device::TensorMap* map) {
  // The stride of a single row says nothing, and need not be a multiple of 16 bytes.
  const int64_t stride = a.tokens > 1 ? a.x_stride : ceil_div(a.columns, 8) * 8;
  return map_matrix(a.value_type, a.x, a.columns, a.tokens, stride, box_tokens, map);
}

}  // namespace secateur
