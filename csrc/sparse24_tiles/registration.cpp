// torch.ops.secateur_cuda.sparse24_tiles.
#include "library/registration.h"

namespace {

using namespace secateur::registration;

void sparse24_tiles(const Tensor& x, const Tensor& data, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& residual, Tensor y,
                    std::optional<Tensor> workspace, int64_t counters, int64_t counter_count,
                    bool gate_up, bool silu_and_mul, bool dependent, int64_t tile_rows,
                    int64_t tile_tokens, int64_t stages, int64_t blocks, int64_t waves,
                    int64_t group) {
  SecateurSparse24Tiles a{};
  a.linear = linear_of(x, bias, residual, y, gate_up, silu_and_mul, dependent);
  set_packed24(a, data, workspace, counters, counter_count);
  a.tile_rows = tile_rows;
  a.tile_tokens = tile_tokens;
  a.stages = stages;
  a.blocks = blocks;
  a.waves = waves;
  a.group = group;
  check(secateur_sparse24_tiles(&a, current_stream(a.linear.device)));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(secateur_cuda, library) {
  library.def(
      "sparse24_tiles(Tensor x, Tensor data, Tensor? bias, Tensor? residual, Tensor(a!) y, "
      "Tensor(b!)? workspace, int counters, int counter_count, bool gate_up, bool silu_and_mul, "
      "bool dependent, int tile_rows, int tile_tokens, int stages, int blocks, int waves, "
      "int group) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(secateur_cuda, CUDA, library) {
  library.impl("sparse24_tiles", TORCH_BOX(&sparse24_tiles));
}
