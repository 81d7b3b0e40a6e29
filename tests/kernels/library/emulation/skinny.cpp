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

void run_shape(const Problem& problem, Machine& machine, int block, bool bulk, int value_type,
               int row_tiles, int tiles) {
  const auto run = [&](auto shape) {
    run_type<decltype(shape)>(problem, machine, block, bulk, value_type);
  };
  switch (16 * row_tiles + tiles) {
    case 16 * 2 + 1: return run(Shape<2, 1>{});
    case 16 * 2 + 2: return run(Shape<2, 2>{});
    case 16 * 2 + 4: return run(Shape<2, 4>{});
    case 16 * 2 + 8: return run(Shape<2, 8>{});
    case 16 * 4 + 1: return run(Shape<4, 1>{});
    case 16 * 4 + 2: return run(Shape<4, 2>{});
    case 16 * 4 + 4: return run(Shape<4, 4>{});
    case 16 * 4 + 8: return run(Shape<4, 8>{});
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
      run_shape(problem, machine, i * a->cluster, bulk != 0, a->linear.value_type, a->row_tiles,
                tiles);
    }
  });
}
