// torch.ops.secateur_cuda.sparse24_skinny.
#include "library/registration.h"

namespace {

using namespace secateur::registration;

void sparse24_skinny(const Tensor& x, const Tensor& data, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& residual, Tensor y,
                     std::optional<Tensor> workspace, int64_t counters, int64_t counter_count,
                     bool gate_up, bool silu_and_mul, bool dependent, int64_t warps,
                     int64_t row_tiles, int64_t stages, int64_t blocks, int64_t cluster,
                     int64_t lead, int64_t ahead) {
  SecateurSparse24Skinny a{};
  a.linear = linear_of(x, bias, residual, y, gate_up, silu_and_mul, dependent);
  set_packed24(a, data, workspace, counters, counter_count);
  a.warps = small(warps);
  a.row_tiles = small(row_tiles);
  a.stages = small(stages);
  a.blocks = blocks;
  a.cluster = small(cluster);
  a.lead = small(lead);
  a.ahead = small(ahead);
  check(secateur_sparse24_skinny(&a, current_stream(a.linear.device)));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(secateur_cuda, library) {
  library.def(
      "sparse24_skinny(Tensor x, Tensor data, Tensor? bias, Tensor? residual, Tensor(a!) y, "
      "Tensor(b!)? workspace, int counters, int counter_count, bool gate_up, bool silu_and_mul, "
      "bool dependent, int warps, int row_tiles, int stages, int blocks, int cluster, int lead, "
      "int ahead) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(secateur_cuda, CUDA, library) {
  library.impl("sparse24_skinny", TORCH_BOX(&sparse24_skinny));
}
