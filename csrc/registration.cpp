// The library's ops, on torch's stable ABI: one binary for every torch from 2.10 on. Plain
// functions over tensors that the caller allocated; what they mean is in secateur/core.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "secateur/core.h"
#include "secateur/fragment24.h"

// It lives in libtorch_cuda, which a CPU build of torch does not have: weak, so that the library
// can be loaded there as well.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(
    int32_t device_index, void** stream);

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(int code) { STD_TORCH_CHECK(code == SECATEUR_OK, secateur_error_text(code)); }

void* current_stream(int32_t device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

void check_same_device(const Tensor& tensor, const char* name, int32_t device) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device, "expected ", name,
                  " on the GPU of the weight");
}

// The packed bytes of a weight [rows, columns].
void check_weight(const Tensor& data, int64_t rows, int64_t columns) {
  using namespace secateur;
  const bool fits = data.scalar_type() == ScalarType::Byte && data.dim() == 3 &&
                    data.is_contiguous() &&
                    data.size(0) == ceil_div(rows, fragment24::unit_rows) &&
                    data.size(1) == ceil_div(columns, fragment24::unit_columns) &&
                    data.size(2) == fragment24::unit_bytes;
  STD_TORCH_CHECK(fits, "expected contiguous uint8 [ceil(N / 64), ceil(K / 64), 4608] for N = ",
                  rows, ", K = ", columns);
}

void unpack24(const Tensor& data, Tensor dense, bool gate_up) {
  STD_TORCH_CHECK(dense.dim() == 2 && dense.is_contiguous() && dense.element_size() == 2,
                  "expected dense [N, K], contiguous, of 16-bit values");
  check_weight(data, dense.size(0), dense.size(1));
  SecateurUnpack24 a{};
  a.device = data.get_device_index();
  check_same_device(dense, "dense", a.device);
  a.weight = data.const_data_ptr();
  a.dense = dense.mutable_data_ptr();
  a.rows = dense.size(0);
  a.columns = dense.size(1);
  a.gate_up = gate_up;
  check(secateur_unpack24(&a, current_stream(a.device)));
}

void check_like(const Tensor& tensor, const char* name, const Tensor& x, int64_t dims,
                int64_t size) {
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type() && tensor.dim() == dims &&
                      tensor.size(dims - 1) == size && tensor.stride(dims - 1) == 1 &&
                      (dims == 1 || tensor.size(0) == x.size(0)),
                  "expected ", name, " of the dtype and tokens of x, with ", size,
                  " contiguous columns");
  check_same_device(tensor, name, x.get_device_index());
}

void sparse24_skinny(const Tensor& x, const Tensor& data, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& residual, Tensor y,
                     std::optional<Tensor> workspace, int64_t counters, int64_t counter_count,
                     bool gate_up, bool silu_and_mul, int64_t warps, int64_t row_tiles,
                     int64_t stages, int64_t blocks) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "expected x of dtype bfloat16 or float16");
  STD_TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1, "expected x [M, K] with contiguous rows");
  STD_TORCH_CHECK(y.dim() == 2 && y.is_contiguous(), "expected y [M, N], contiguous");
  SecateurSparse24Skinny a{};
  a.device = x.get_device_index();
  a.tokens = x.size(0);
  a.columns = x.size(1);
  a.rows = y.size(1) * (silu_and_mul ? 2 : 1);
  check_weight(data, a.rows, a.columns);
  check_same_device(data, "data", a.device);
  check_like(y, "y", x, 2, y.size(1));
  a.x = x.const_data_ptr();
  a.x_stride = x.stride(0);
  a.weight = data.const_data_ptr();
  a.y = y.mutable_data_ptr();
  if (bias) {
    check_like(*bias, "bias", x, 1, a.rows);
    a.bias = bias->const_data_ptr();
  }
  if (residual) {
    check_like(*residual, "residual", x, 2, y.size(1));
    a.residual = residual->const_data_ptr();
    a.residual_stride = residual->stride(0);
  }
  if (workspace) {
    check_same_device(*workspace, "workspace", a.device);
    a.workspace = workspace->mutable_data_ptr();
    a.workspace_bytes = workspace->numel() * static_cast<int64_t>(workspace->element_size());
  }
  a.counters = reinterpret_cast<void*>(counters);
  a.counter_count = counter_count;
  a.value_type = type == ScalarType::BFloat16 ? SECATEUR_BF16 : SECATEUR_FP16;
  a.gate_up = gate_up;
  a.silu_and_mul = silu_and_mul;
  a.warps = static_cast<int32_t>(warps);
  a.row_tiles = static_cast<int32_t>(row_tiles);
  a.stages = static_cast<int32_t>(stages);
  a.blocks = blocks;
  check(secateur_sparse24_skinny(&a, current_stream(a.device)));
}

}  // namespace

STABLE_TORCH_LIBRARY(secateur_cuda, library) {
  library.def("unpack24(Tensor data, Tensor(a!) dense, bool gate_up) -> ()");
  library.def(
      "sparse24_skinny(Tensor x, Tensor data, Tensor? bias, Tensor? residual, Tensor(a!) y, "
      "Tensor(b!)? workspace, int counters, int counter_count, bool gate_up, bool silu_and_mul, "
      "int warps, int row_tiles, int stages, int blocks) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(secateur_cuda, CUDA, library) {
  library.impl("unpack24", TORCH_BOX(&unpack24));
  library.impl("sparse24_skinny", TORCH_BOX(&sparse24_skinny));
}
