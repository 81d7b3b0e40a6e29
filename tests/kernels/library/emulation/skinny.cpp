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

// Clusters run one after the other, in an order that follows from the seed; of thread blocks without
// clusters some run at the same time. `bulk`: as on sm_90. 1: see emulation_message.
extern "C" int emulate_sparse24_skinny(const SecateurSparse24Skinny* a, int bulk, uint64_t seed) {
  if (const int error = secateur_sparse24_skinny_check(a)) return error;
  if (a->cluster > 1 && !bulk) return SECATEUR_NO_CLUSTERS;
  const Problem problem = problem_of(*a);
  const int tiles = token_tiles(a->linear.tokens);
  return emulation::guarded([&] {
    const int blocks = problem.schedule.blocks;
    const auto run = [&](int first, int count) {
      Machine machine((a->warps + 1) * warp_lanes,
                      shared_bytes(a->warps, a->row_tiles, tiles, a->stages, a->cluster),
                      seed + first, count, a->cluster == 1);
      allow(*a, machine);
      with_shape(a->row_tiles, a->linear.tokens, [&](auto shape) {
        run_type<decltype(shape)>(problem, machine, first, bulk != 0, a->linear.value_type);
      });
    };
    if (a->cluster == 1) {
      emulation::for_each_group(blocks, seed, run);
    } else {
      for (const int i : emulation::shuffled(blocks / a->cluster, seed)) {
        run(i * a->cluster, a->cluster);
      }
    }
  });
}
