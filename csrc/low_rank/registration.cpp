// torch.ops.secateur_cuda.low_rank.
#include <vector>

#include "library/registration.h"

namespace {

using namespace secateur::registration;

void check_factor(const Tensor& factor, const char* name, const Tensor& x, int64_t rows,
                  int64_t columns) {
  STD_TORCH_CHECK(factor.scalar_type() == x.scalar_type() && factor.dim() == 2 &&
                      factor.is_contiguous() && factor.size(0) == rows &&
                      factor.size(1) == columns,
                  "expected ", name, " [", rows, ", ", columns, "], contiguous, of the dtype of x");
  check_same_device(factor, name, x.get_device_index());
}

// Warps, row tiles, stages, blocks, boxes, ahead.
SecateurLowRankDivision division_of(const std::vector<int64_t>& numbers, const char* name) {
  STD_TORCH_CHECK(numbers.size() == 6, "expected six numbers for ", name);
  return {small(numbers[0]), small(numbers[1]), small(numbers[2]),
          small(numbers[4]), numbers[3],        small(numbers[5])};
}

void low_rank(const Tensor& x, const std::optional<Tensor>& data, const Tensor& down,
              const Tensor& up, std::vector<int64_t> group_rows, const std::optional<Tensor>& bias,
              const std::optional<Tensor>& residual, Tensor y, Tensor workspace, bool gate_up,
              bool silu_and_mul, bool dependent, std::vector<int64_t> down_division,
              std::vector<int64_t> up_division) {
  SecateurLowRank a{};
  a.linear = linear_of(x, bias, residual, y, gate_up, silu_and_mul, dependent);
  a.groups = static_cast<int64_t>(group_rows.size());
  a.group_rows = group_rows.data();
  STD_TORCH_CHECK(up.dim() == 2, "expected up [N, r]");
  a.rank = up.size(1);
  check_factor(down, "down", x, a.groups * a.rank, a.linear.columns);
  check_factor(up, "up", x, a.linear.rows, a.rank);
  a.down = down.const_data_ptr();
  a.up = up.const_data_ptr();
  if (data) {
    check_weight(*data, a.linear.rows, a.linear.columns);
    check_same_device(*data, "data", a.linear.device);
    a.sparse = data->const_data_ptr();
  }
  check_same_device(workspace, "workspace", a.linear.device);
  a.workspace = workspace.mutable_data_ptr();
  a.workspace_bytes = workspace.numel() * static_cast<int64_t>(workspace.element_size());
  a.down_division = division_of(down_division, "down_division");
  a.up_division = division_of(up_division, "up_division");
  check(secateur_low_rank(&a, current_stream(a.linear.device)));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(secateur_cuda, library) {
  library.def(
      "low_rank(Tensor x, Tensor? data, Tensor down, Tensor up, int[] group_rows, Tensor? bias, "
      "Tensor? residual, Tensor(a!) y, Tensor(b!) workspace, bool gate_up, bool silu_and_mul, "
      "bool dependent, int[] down_division, int[] up_division) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(secateur_cuda, CUDA, library) {
  library.impl("low_rank", TORCH_BOX(&low_rank));
}
