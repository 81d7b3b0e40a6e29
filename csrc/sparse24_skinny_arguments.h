// From the C interface's arguments to the kernel's, with all checks that need no device.
#pragma once

#include "secateur/core.h"
#include "secateur/skinny/problem.h"

namespace secateur::skinny {

inline bool aligned(const void* pointer, int bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Groups of eight tokens that are computed.
inline int token_tiles(int64_t tokens) {
  return tokens <= 8 ? 1 : tokens <= 16 ? 2 : tokens <= 32 ? 4 : 8;
}

// What the kernel receives; the configuration must be sound.
inline Problem problem_of(const SecateurSparse24Skinny& a) {
  Problem p{};
  p.x = a.x;
  p.weight = static_cast<const uint8_t*>(a.weight);
  p.bias = a.bias;
  p.residual = a.residual;
  p.y = a.y;
  p.workspace = static_cast<float*>(a.workspace);
  p.counters = static_cast<uint32_t*>(a.counters);
  p.x_stride = a.x_stride;
  p.residual_stride = a.residual_stride;
  p.tokens = static_cast<int>(a.tokens);
  p.rows = static_cast<int>(a.rows);
  p.columns = static_cast<int>(a.columns);
  p.gate_up = a.gate_up != 0;
  p.silu_and_mul = a.silu_and_mul != 0;
  p.x_aligned = aligned(a.x, 16) && (a.tokens == 1 || a.x_stride % 8 == 0);
  p.paired = output_columns(p.rows, p.silu_and_mul) % 2 == 0 && aligned(a.y, 4) &&
             (a.residual == nullptr || (aligned(a.residual, 4) && a.residual_stride % 2 == 0));
  p.warps = a.warps;
  p.stages = a.stages;
  p.schedule = schedule(p.rows, p.columns, a.warps, a.row_tiles, static_cast<int>(a.blocks));
  p.block_panels = block_panels(a.warps, a.row_tiles);
  p.stage_bytes = stage_bytes(a.warps, a.row_tiles, token_tiles(a.tokens));
  return p;
}

inline int check_configuration(const SecateurSparse24Skinny& a) {
  if (a.rows < 1 || a.columns < 4 || a.columns % 4 != 0 || a.rows > max_size ||
      a.columns > max_size) {
    return SECATEUR_BAD_SHAPE;
  }
  if (a.tokens < 1 || a.tokens > max_tokens) return SECATEUR_BAD_TOKENS;
  if (a.gate_up && a.rows % 16 != 0) return SECATEUR_BAD_ROW_ORDER;
  if (a.silu_and_mul && !a.gate_up) return SECATEUR_BAD_ACTIVATION;
  if (a.value_type != SECATEUR_BF16 && a.value_type != SECATEUR_FP16) {
    return SECATEUR_BAD_VALUE_TYPE;
  }
  if (a.warps < 1 || a.warps > max_warps(a.row_tiles, token_tiles(a.tokens)) ||
      (a.row_tiles != 2 && a.row_tiles != 4) ||
      a.warps * a.row_tiles % fragment24::tiles_per_unit != 0) {
    return SECATEUR_BAD_TILES;
  }
  if (a.stages < min_stages || a.stages > max_stages) return SECATEUR_BAD_STAGES;
  const Schedule plan = problem_of(a).schedule;
  return Schedule::fits(plan.row_blocks, plan.steps, a.blocks) ? SECATEUR_OK : SECATEUR_BAD_BLOCKS;
}

inline int check_pointers(const SecateurSparse24Skinny& a) {
  if (a.x == nullptr || a.weight == nullptr || a.y == nullptr) return SECATEUR_NULL_POINTER;
  if (!aligned(a.weight, 16) || !aligned(a.workspace, 16) || !aligned(a.counters, 4) ||
      !aligned(a.x, 2) || !aligned(a.y, 2) || !aligned(a.bias, 2) || !aligned(a.residual, 2)) {
    return SECATEUR_MISALIGNED;
  }
  // Rows may overlap: they are only read.
  return a.x_stride < 0 || a.residual_stride < 0 ? SECATEUR_BAD_STRIDE : SECATEUR_OK;
}

}  // namespace secateur::skinny
