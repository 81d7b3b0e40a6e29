// The low-rank kernels' own source, run on emulated thread blocks behind the C interface's checks.
#include "emulated/run.h"
#include "low_rank/arguments.h"
#include "secateur/low_rank/boxes/down.h"
#include "secateur/low_rank/boxes/up.h"
#include "secateur/low_rank/down.h"
#include "secateur/low_rank/up.h"

namespace {

using namespace secateur;
using namespace secateur::low_rank;
using emulation::Machine;
using emulation::shared_base;

void allow_x(const SecateurLinear& a, Machine& machine) {
  for (int64_t token = 0; token < a.tokens; ++token) {
    machine.allow(static_cast<const uint16_t*>(a.x) + token * a.x_stride, 2 * a.columns, false);
  }
}

template <typename Value>
void run_down_kernel(const SecateurLowRank& a, uint64_t seed) {
  const Down down = down_of(a);
  for (const int block : emulation::shuffled(static_cast<int>(down_blocks(a)), seed)) {
    Machine machine(a.down_division.warps * warp_lanes, static_cast<int>(down_shared_bytes(a)),
                    seed + block);
    machine.allow(a.down, 2 * a.groups * a.rank * a.linear.columns, false, true);
    allow_x(a.linear, machine);
    machine.allow(a.workspace, a.workspace_bytes, true);
    if (a.linear.dependent) machine.launch_dependent();
    with_shape(a.down_division.row_tiles, a.linear.tokens, [&](auto shape) {
      machine.run(block, [&] { run_down<Value, decltype(shape)>(down, shared_base); });
    });
  }
}

template <typename Value>
void run_up_kernel(const SecateurLowRank& a, uint64_t seed) {
  const Up up = up_of(a);
  for (const int block : emulation::shuffled(up.blocks, seed)) {
    Machine machine(a.up_division.warps * warp_lanes, static_cast<int>(up_shared_bytes(a)),
                    seed + block);
    machine.allow(a.up, 2 * a.linear.rows * a.rank, false, true);
    if (a.sparse != nullptr) {
      emulation::allow_packed24(a.sparse, a.linear.rows, a.linear.columns, machine);
    }
    machine.allow(a.workspace, a.workspace_bytes, false);
    emulation::allow_linear(a.linear, machine);
    // The kernel in front is the first of the two, whatever that one was launched as.
    machine.launch_dependent();
    with_shape(a.up_division.row_tiles, a.linear.tokens, [&](auto shape) {
      machine.run(block, [&] {
        if (a.sparse != nullptr) {
          run_up<Value, decltype(shape), true>(up, shared_base);
        } else {
          run_up<Value, decltype(shape), false>(up, shared_base);
        }
      });
    });
  }
}

// Dynamic shared memory is aligned to 16 bytes only.
int misplaced(uint64_t seed) { return 16 * ((seed + 21) % 64); }

device::TensorMap factor_map(const void* factor, int64_t columns, int64_t rows, int box_rows) {
  return {static_cast<const uint8_t*>(factor), columns, rows, 2 * columns, box_rows};
}

// As library/tensor_map.h has the driver encode it.
device::TensorMap x_map(const SecateurLinear& a) {
  const int64_t alone = ceil_div(a.columns, 8) * 8;
  return {static_cast<const uint8_t*>(a.x), a.columns, a.tokens,
          2 * (a.tokens > 1 ? a.x_stride : alone), 8 * token_tiles(a.tokens)};
}

template <typename Value>
void run_box_down_kernel(const SecateurLowRank& a, uint64_t seed) {
  const int64_t rows = a.groups * a.rank;
  const boxes::BoxDown problem{
      down_of(a), cluster_of(a.down_division),
      factor_map(a.down, a.linear.columns, rows, tile_rows * a.down_division.row_tiles),
      x_map(a.linear)};
  const int size = problem.cluster, clusters = static_cast<int>(down_blocks(a)) / size;
  for (const int cluster : emulation::shuffled(clusters, seed)) {
    Machine machine(boxes::threads, misplaced(seed) + static_cast<int>(down_shared_bytes(a)),
                    seed + cluster, size);
    machine.allow(a.down, 2 * rows * a.linear.columns, false, true);
    allow_x(a.linear, machine);
    machine.allow(a.workspace, a.workspace_bytes, true);
    if (a.linear.dependent) machine.launch_dependent();
    with_box_shape(a.down_division.row_tiles, a.linear.tokens, [&](auto shape) {
      machine.run(cluster * size, [&] {
        boxes::run_down<Value, decltype(shape)>(problem, shared_base + misplaced(seed));
      });
    });
  }
}

template <typename Value>
void run_box_up_kernel(const SecateurLowRank& a, uint64_t seed) {
  const bool gated = a.linear.silu_and_mul != 0;
  const boxes::BoxUp problem{
      up_of(a), cluster_of(a.up_division),
      factor_map(a.up, a.rank, a.linear.rows,
                 boxes::up_box_rows(a.up_division.row_tiles, gated))};
  const int size = problem.cluster;
  for (const int cluster : emulation::shuffled(problem.up.blocks, seed)) {
    Machine machine(boxes::threads, misplaced(seed) + static_cast<int>(up_shared_bytes(a)),
                    seed + cluster, size);
    machine.allow(a.up, 2 * a.linear.rows * a.rank, false, true);
    machine.allow(a.workspace, a.workspace_bytes, false);
    emulation::allow_linear(a.linear, machine);
    machine.launch_dependent();
    with_box_shape(a.up_division.row_tiles, a.linear.tokens, [&](auto shape) {
      machine.run(cluster * size, [&] {
        const uint32_t shared = shared_base + misplaced(seed);
        using S = decltype(shape);
        if (!gated) {
          boxes::run_up<Value, S, false>(problem, shared);
        } else if constexpr (S::row_tiles % 2 == 0) {
          boxes::run_up<Value, S, true>(problem, shared);
        }
      });
    });
  }
}

template <typename Value>
void run_kernels(const SecateurLowRank& a, uint64_t seed) {
  (a.down_division.boxes ? run_box_down_kernel<Value> : run_down_kernel<Value>)(a, seed);
  (a.up_division.boxes ? run_box_up_kernel<Value> : run_up_kernel<Value>)(a, seed + 1);
}

}  // namespace

// Both kernels, each one's thread blocks one after the other, in an order that follows from the
// seed. 1: see emulation_message.
extern "C" int emulate_low_rank(const SecateurLowRank* a, uint64_t seed) {
  if (const int error = secateur_low_rank_check(a)) return error;
  return emulation::guarded([&] {
    if (a->linear.value_type == SECATEUR_BF16) {
      run_kernels<Bf16>(*a, seed);
    } else {
      run_kernels<Fp16>(*a, seed);
    }
  });
}
