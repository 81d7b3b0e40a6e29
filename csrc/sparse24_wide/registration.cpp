// torch.ops.secateur_cuda.sparse24_wide.
#include "library/registration.h"

namespace {

using namespace secateur::registration;

void sparse24_wide(const Tensor& x, const Tensor& data, const std::optional<Tensor>& bias,
                   const std::optional<Tensor>& residual, Tensor y,
                   std::optional<Tensor> workspace, int64_t counters, int64_t counter_count,
                   bool gate_up, bool silu_and_mul, bool dependent, int64_t warpgroups,
                   int64_t panels, int64_t tile_tokens, int64_t stages, int64_t cluster_rows,
                   int64_t cluster_tokens, int64_t cluster_steps, int64_t blocks, int64_t waves,
                   int64_t group, bool late, int64_t ahead) {
  SecateurSparse24Wide a{};
  a.linear = linear_of(x, bias, residual, y, gate_up, silu_and_mul, dependent);
  set_packed24(a, data, workspace, counters, counter_count);
  a.warpgroups = small(warpgroups);
  a.panels = small(panels);
  a.tile_tokens = small(tile_tokens);
  a.stages = small(stages);
  a.cluster_rows = small(cluster_rows);
  a.cluster_tokens = small(cluster_tokens);
  a.cluster_steps = small(cluster_steps);
  a.blocks = blocks;
  a.waves = waves;
  a.group = group;
  a.late = late;
  a.ahead = small(ahead);
  check(secateur_sparse24_wide(&a, current_stream(a.linear.device)));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(secateur_cuda, library) {
  library.def(
      "sparse24_wide(Tensor x, Tensor data, Tensor? bias, Tensor? residual, Tensor(a!) y, "
      "Tensor(b!)? workspace, int counters, int counter_count, bool gate_up, bool silu_and_mul, "
      "bool dependent, int warpgroups, int panels, int tile_tokens, int stages, int cluster_rows, "
      "int cluster_tokens, int cluster_steps, int blocks, int waves, int group, bool late, "
      "int ahead) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(secateur_cuda, CUDA, library) {
  library.impl("sparse24_wide", TORCH_BOX(&sparse24_wide));
}
