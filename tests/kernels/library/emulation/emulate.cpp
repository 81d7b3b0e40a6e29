// The kernels' own source, run on the emulated thread block; the C interface's checks beside it.
#include <algorithm>
#include <numeric>
#include <string>

#include "error_text.h"
#include "secateur/skinny/block.h"
#include "secateur/unpack24.h"
#include "sparse24_skinny_arguments.h"

namespace {

using namespace secateur;
using namespace secateur::skinny;
using emulation::Machine;
using emulation::shared_base;

std::string message;

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

void allow_skinny(const SecateurSparse24Skinny& a, Machine& machine) {
  const int64_t out = output_columns(static_cast<int>(a.rows), a.silu_and_mul != 0);
  const int64_t steps = fragment24::steps(static_cast<int>(a.columns));
  const int64_t panels = fragment24::panels(static_cast<int>(a.rows));
  machine.allow(a.weight, fragment24::unit_offset(panels, 0, steps), false);
  for (int64_t token = 0; token < a.tokens; ++token) {
    machine.allow(static_cast<const uint16_t*>(a.x) + token * a.x_stride, 2 * a.columns, false);
    if (a.residual) {
      machine.allow(static_cast<const uint16_t*>(a.residual) + token * a.residual_stride, 2 * out,
                    false);
    }
  }
  machine.allow(a.bias, 2 * a.rows, false);
  machine.allow(a.y, 2 * out * a.tokens, true);
  machine.allow(a.workspace, a.workspace_bytes, true);
  machine.allow(a.counters, 4 * a.counter_count, true);
}

}  // namespace

extern "C" {

const char* emulation_message() { return message.c_str(); }

const char* secateur_error_text(int code) { return secateur::own_error_text(code); }

// Thread blocks run one after the other, in an order that follows from the seed. 1: see
// emulation_message.
int emulate_sparse24_skinny(const SecateurSparse24Skinny* a, int bulk, uint64_t seed) {
  if (const int error = secateur_sparse24_skinny_check(a)) return error;
  const Problem problem = problem_of(*a);
  const int tiles = token_tiles(a->tokens);
  std::vector<int> order(problem.schedule.blocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  try {
    for (const int block : order) {
      Machine machine((a->warps + 1) * warp_lanes,
                      shared_bytes(a->warps, a->row_tiles, tiles, a->stages), seed + block);
      allow_skinny(*a, machine);
      run_shape(problem, machine, block, bulk != 0, a->value_type, a->row_tiles, tiles);
    }
  } catch (const std::runtime_error& error) {
    message = error.what();
    return 1;
  }
  return 0;
}

int emulate_unpack24(const SecateurUnpack24* a) {
  if (const int error = secateur_unpack24_check(a)) return error;
  const unpack24::Problem problem{static_cast<const uint8_t*>(a->weight),
                                  static_cast<uint16_t*>(a->dense), static_cast<int>(a->rows),
                                  static_cast<int>(a->columns), a->gate_up != 0};
  const int64_t weight_bytes = fragment24::unit_offset(fragment24::panels(problem.rows), 0,
                                                       fragment24::steps(problem.columns));
  try {
    for (int64_t tile = 0; tile < unpack24::tiles(problem); ++tile) {
      Machine machine(warp_lanes, 16, 0);
      machine.allow(a->weight, weight_bytes, false);
      machine.allow(a->dense, 2 * a->rows * a->columns, true);
      machine.run(0, [&] { unpack24::unpack_tile(problem, tile, device::lane()); });
    }
  } catch (const std::runtime_error& error) {
    message = error.what();
    return 1;
  }
  return 0;
}

// ---- the index functions, one by one ----

int64_t index_unit_offset(int64_t panel, int64_t step, int64_t steps) {
  return fragment24::unit_offset(panel, step, steps);
}
int index_value_offset(int fragment, int lane) { return fragment24::value_offset(fragment, lane); }
int index_metadata_offset(int lane) { return fragment24::metadata_offset(lane); }
int index_metadata_lane(int lane, int fragment, int half) {
  return fragment24::metadata_lane(lane, fragment, half);
}
uint32_t index_nibble(uint32_t word, int lane, int half) {
  return fragment24::nibble(word, lane, half);
}
int index_group_column(int lane, int fragment, int half) {
  return fragment24::group_column(lane, fragment, half);
}
int index_value_register(int row_half, int column_half) {
  return fragment24::value_register(row_half, column_half);
}
int64_t index_logical_row(int64_t tile, int row, int64_t rows, int gate_up) {
  return fragment24::logical_row(tile, row, rows, gate_up != 0);
}
uint64_t index_expand_group(uint32_t values, uint32_t nibble) {
  return fragment24::expand_group(values, nibble);
}
int index_chunk_offset(int token, int chunk) { return x_tile::chunk_offset(token, chunk); }
int index_operand_offset(int lane, int token_tile, int fragment) {
  return static_cast<int>((x_tile::operand_offset(lane) ^ (fragment * x_tile::second_fragment)) +
                          token_tile * x_tile::token_tile_bytes);
}
int index_valid_bytes(int column, int columns) { return x_tile::valid_bytes(column, columns); }
int index_accumulator_row(int lane, int item) { return accumulator::row(lane, item); }
int index_accumulator_token(int lane, int item) { return accumulator::token(lane, item); }
int schedule_first_unit(int row_blocks, int steps, int blocks, int block) {
  return Schedule{row_blocks, steps, blocks}.first_unit(block);
}
int schedule_block_of(int row_blocks, int steps, int blocks, int unit) {
  return Schedule{row_blocks, steps, blocks}.block_of(unit);
}
int schedule_slot(int row_blocks, int steps, int blocks, int block, int row_block) {
  return Schedule{row_blocks, steps, blocks}.slot(block, row_block);
}
int64_t schedule_slots(int row_blocks, int steps, int blocks) {
  return Schedule{row_blocks, steps, blocks}.slots();
}
int schedule_fits(int64_t row_blocks, int64_t steps, int64_t blocks) {
  return Schedule::fits(row_blocks, steps, blocks);
}
}
