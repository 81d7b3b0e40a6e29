// The tiles kernel's own source, run on emulated thread blocks behind the C interface's checks.
#include "emulated/run.h"
#include "secateur/tiles/block.h"
#include "sparse24_tiles/arguments.h"

namespace {

using namespace secateur;
using namespace secateur::tiles;
using emulation::Machine;

void allow(const SecateurSparse24Tiles& a, Machine& machine) {
  emulation::allow_packed24(a.weight, a.linear.rows, a.linear.columns, machine);
  emulation::allow_linear(a.linear, machine);
  machine.allow(a.workspace, a.workspace_bytes, true);
  machine.allow(a.counters, 4 * a.counter_count, true);
}

template <typename Shape>
void run(const SecateurSparse24Tiles& a, Machine& machine, int block) {
  const Problem problem = problem_of(a);
  machine.run(block, [&] {
    if (a.linear.value_type == SECATEUR_BF16) {
      run_block<Bf16, Shape>(problem, emulation::shared_base);
    } else {
      run_block<Fp16, Shape>(problem, emulation::shared_base);
    }
  });
}

}  // namespace

// Some thread blocks run at the same time. 1: see emulation_message.
extern "C" int emulate_sparse24_tiles(const SecateurSparse24Tiles* a, uint64_t seed) {
  if (const int error = secateur_sparse24_tiles_check(a)) return error;
  return emulation::guarded([&] {
    with_shape(a->tile_rows, a->tile_tokens, [&](auto shape) {
      using S = decltype(shape);
      const int shared = shared_bytes(S::stage_bytes, static_cast<int>(a->stages));
      emulation::for_each_group(static_cast<int>(a->blocks), seed, [&](int first, int count) {
        Machine machine(S::threads, shared, seed + first, count, true);
        allow(*a, machine);
        run<S>(*a, machine, first);
      });
    });
  });
}
