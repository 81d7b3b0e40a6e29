// The wide kernel's own source, run on emulated clusters behind the C interface's checks.
#include "emulated/run.h"
#include "secateur/wide/block.h"
#include "sparse24_wide/arguments.h"

namespace {

using namespace secateur;
using namespace secateur::wide;
using emulation::Machine;
using emulation::shared_base;

void allow(const SecateurSparse24Wide& a, Machine& machine) {
  emulation::allow_packed24(a.weight, a.linear.rows, a.linear.columns, machine);
  emulation::allow_linear(a.linear, machine);
  machine.allow(a.workspace, a.workspace_bytes, true);
  machine.allow(a.counters, 4 * a.counter_count, true);
}

// As library/tensor_map.h has the driver encode it.
device::TensorMap map_of(const SecateurSparse24Wide& a) {
  const int64_t alone = ceil_div(a.linear.columns, 8) * 8;
  const int64_t stride = a.linear.tokens > 1 ? a.linear.x_stride : alone;
  return {static_cast<const uint8_t*>(a.linear.x), a.linear.columns, a.linear.tokens, 2 * stride,
          box_tokens(a)};
}

}  // namespace

// Clusters run one after the other, in an order that follows from the seed; of thread blocks without
// clusters some run at the same time. 1: see emulation_message.
extern "C" int emulate_sparse24_wide(const SecateurSparse24Wide* a, uint64_t seed) {
  if (const int error = secateur_sparse24_wide_check(a)) return error;
  Problem problem = problem_of(*a);
  problem.x = map_of(*a);
  const int size = problem.cluster.size();
  return emulation::guarded([&] {
    const auto run = [&](int first, int count) {
      with_shape(a->warpgroups, a->panels, a->tile_tokens, [&](auto shape) {
        using S = decltype(shape);
        // Dynamic shared memory is aligned to 16 bytes only.
        const int misplaced = 16 * ((seed + 21) % 64);
        const int bytes = shared_bytes<S>(a->stages);
        Machine machine(S::threads, misplaced + bytes, seed + first, count, size == 1);
        allow(*a, machine);
        machine.run(first, [&] {
          if (a->linear.value_type == SECATEUR_BF16) {
            run_block<Bf16, S>(problem, shared_base + misplaced);
          } else {
            run_block<Fp16, S>(problem, shared_base + misplaced);
          }
        });
      });
    };
    if (size == 1) {
      emulation::for_each_group(problem.schedule.blocks, seed, run);
    } else {
      for (const int cluster : emulation::shuffled(problem.schedule.blocks, seed)) {
        run(cluster * size, size);
      }
    }
  });
}
