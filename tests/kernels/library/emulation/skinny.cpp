// The skinny kernel's own source, run on emulated thread blocks behind the C interface's checks.
#include "emulated/run.h"
#include "secateur/skinny/block.h"
#include "sparse24_skinny/arguments.h"

namespace {

using namespace secateur;
using namespace secateur::skinny;
using emulation::Machine;
using emulation::shared_base;

template <typename Value, typename Shape>
void run_skinny(const Problem& problem, Machine& machine, int block, bool bulk) {
  machine.run(block, [&] {
    if (bulk) {
      run_block<Value, Shape, true>(problem, shared_base);
    } else {
      run_block<Value, Shape, false>(problem, shared_base);
    }
  });
}

template <typename Shape>
void run_type(const Problem& problem, Machine& machine, int block, bool bulk, int value_type) {
  if (value_type == SECATEUR_BF16) {
    run_skinny<Bf16, Shape>(problem, machine, block, bulk);
  } else {
    run_skinny<Fp16, Shape>(problem, machine, block, bulk);
  }
}

void allow(const SecateurSparse24Skinny& a, Machine& machine) {
  emulation::allow_packed24(a.weight, a.linear.rows, a.linear.columns, machine);
  emulation::allow_linear(a.linear, machine);
  machine.allow(a.workspace, a.workspace_bytes, true);
  machine.allow(a.counters, 4 * a.counter_count, true);
}

}  // namespace

// Clusters, most often of one thread block, run one after the other, in an order that follows from
// the seed. `bulk`: as on sm_90. 1: see emulation_message.
extern "C" int emulate_sparse24_skinny(const SecateurSparse24Skinny* a, int bulk, uint64_t seed) {
  if (const int error = secateur_sparse24_skinny_check(a)) return error;
  if (a->cluster > 1 && !bulk) return SECATEUR_NO_CLUSTERS;
  const Problem problem = problem_of(*a);
  const int tiles = token_tiles(a->linear.tokens);
  return emulation::guarded([&] {
    for (const int i : emulation::shuffled(problem.schedule.blocks / a->cluster, seed)) {
      Machine machine((a->warps + 1) * warp_lanes,
                      shared_bytes(a->warps, a->row_tiles, tiles, a->stages, a->cluster), seed + i,
                      a->cluster);
      allow(*a, machine);
      with_shape(a->row_tiles, a->linear.tokens, [&](auto shape) {
        run_type<decltype(shape)>(problem, machine, i * a->cluster, bulk != 0,
                                  a->linear.value_type);
      });
    }
  });
}
