// What the registration of ops on torch's stable ABI has in common: one binary for every torch from
// 2.10 on. The ops are plain functions over tensors that the caller allocated; what they mean is in
// secateur/core.h.
#pragma once

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

namespace secateur::registration {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check(int code) { STD_TORCH_CHECK(code == SECATEUR_OK, secateur_error_text(code)); }

inline void* current_stream(int32_t device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

inline void check_same_device(const Tensor& tensor, const char* name, int32_t device) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device, "expected ", name,
                  " on the GPU of the weight");
}

// The packed bytes of a weight [rows, columns].
inline void check_weight(const Tensor& data, int64_t rows, int64_t columns) {
  const bool fits = data.scalar_type() == ScalarType::Byte && data.dim() == 3 &&
                    data.is_contiguous() &&
                    data.size(0) == ceil_div(rows, fragment24::unit_rows) &&
                    data.size(1) == ceil_div(columns, fragment24::unit_columns) &&
                    data.size(2) == fragment24::unit_bytes;
  STD_TORCH_CHECK(fits, "expected contiguous uint8 [ceil(N / 64), ceil(K / 64), 4608] for N = ",
                  rows, ", K = ", columns);
}

inline void check_like(const Tensor& tensor, const char* name, const Tensor& x, int64_t dims,
                       int64_t size) {
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type() && tensor.dim() == dims &&
                      tensor.size(dims - 1) == size && tensor.stride(dims - 1) == 1 &&
                      (dims == 1 || tensor.size(0) == x.size(0)),
                  "expected ", name, " of the dtype and tokens of x, with ", size,
                  " contiguous columns");
  check_same_device(tensor, name, x.get_device_index());
}

// What every linear layer has; checks the tensors.
inline SecateurLinear linear_of(const Tensor& x, const std::optional<Tensor>& bias,
                                const std::optional<Tensor>& residual, const Tensor& y,
                                bool gate_up, bool silu_and_mul, bool dependent) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "expected x of dtype bfloat16 or float16");
  STD_TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1, "expected x [M, K] with contiguous rows");
  STD_TORCH_CHECK(y.dim() == 2 && y.is_contiguous(), "expected y [M, N], contiguous");
  SecateurLinear a{};
  a.device = x.get_device_index();
  a.tokens = x.size(0);
  a.columns = x.size(1);
  a.rows = y.size(1) * (silu_and_mul ? 2 : 1);
  check_like(y, "y", x, 2, y.size(1));
  a.x = x.const_data_ptr();
  a.x_stride = x.stride(0);
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
  a.value_type = type == ScalarType::BFloat16 ? SECATEUR_BF16 : SECATEUR_FP16;
  a.gate_up = gate_up;
  a.silu_and_mul = silu_and_mul;
  a.dependent = dependent;
  return a;
}

// A number of a configuration, which the C interface takes as 32 bits.
inline int32_t small(int64_t value) {
  const auto narrow = static_cast<int32_t>(value);
  STD_TORCH_CHECK(narrow == value, "expected a number of 32 bits, got ", value);
  return narrow;
}

// What every kernel for a packed weight has beside `linear`; checks the tensors.
template <typename Arguments>
void set_packed24(Arguments& a, const Tensor& data, std::optional<Tensor>& workspace,
                  int64_t counters, int64_t counter_count) {
  check_weight(data, a.linear.rows, a.linear.columns);
  check_same_device(data, "data", a.linear.device);
  a.weight = data.const_data_ptr();
  if (workspace) {
    check_same_device(*workspace, "workspace", a.linear.device);
    a.workspace = workspace->mutable_data_ptr();
    a.workspace_bytes = workspace->numel() * static_cast<int64_t>(workspace->element_size());
  }
  a.counters = reinterpret_cast<void*>(counters);
  a.counter_count = counter_count;
}

}  // namespace secateur::registration
