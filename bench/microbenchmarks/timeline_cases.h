// What timeline.cu measures: no CUDA in here.
#pragma once

#include <array>

#include "sparse24_skinny/arguments.h"
#include "sparse24_wide/arguments.h"

namespace micro {

constexpr int most_tokens = 16;  // of the skinny kernel's
constexpr int row_tiles = 2;
constexpr int64_t workspace_bytes = 64 << 20;
constexpr int64_t counter_count = 1 << 16;
constexpr int most_blocks = 256;
constexpr int64_t most_values = 64 * 8192;  // of x and of y

// When the next kernel may start, in steps left to ask for (wide: not 0 is late); and steps of
// weights to ask for ahead of the ring.
struct Moments {
  int lead, ahead;
};
constexpr int ahead_bytes = 128 << 10;  // of a multiprocessor

struct SkinnyCase {
  int rows, columns, warps, stages, blocks, cluster;

  constexpr int ahead() const {
    const int step = warps * row_tiles / 4 * secateur::fragment24::unit_bytes;
    return ahead_bytes / (blocks > 132 ? 2 : 1) / step;
  }
  constexpr std::array<Moments, 6> moments() const {
    return {{{0, 0}, {stages / 2, 0}, {stages, 0}, {0, ahead()}, {stages / 2, ahead()},
             {stages, ahead()}}};
  }
};
constexpr SkinnyCase skinny_cases[] = {
    {4096, 4096, 8, 5, 128, 8},  {4096, 4096, 6, 7, 88, 4},   {8192, 8192, 8, 5, 128, 4},
    {8192, 8192, 2, 16, 256, 2}, {28672, 4096, 8, 5, 132, 1}, {28672, 4096, 8, 11, 112, 1},
    {4096, 14336, 4, 10, 128, 4},
};
constexpr int skinny_case_count = sizeof skinny_cases / sizeof skinny_cases[0];

// The wide kernel has one.
using WideShape = secateur::wide::Shape<2, 1, 64>;
constexpr int wide_rows = 8192, wide_columns = 8192, wide_stages = 12, wide_blocks = 128;

// All but pointers.
inline SecateurLinear linear_of(int rows, int columns, int tokens) {
  SecateurLinear a{};
  a.x_stride = a.columns = columns;
  a.rows = rows;
  a.tokens = tokens;
  a.value_type = SECATEUR_BF16;
  return a;
}
inline SecateurSparse24Skinny arguments_of(const SkinnyCase& c, int tokens, Moments moments) {
  SecateurSparse24Skinny a{};
  a.linear = linear_of(c.rows, c.columns, tokens);
  a.warps = c.warps, a.row_tiles = row_tiles, a.stages = c.stages;
  a.blocks = c.blocks, a.cluster = c.cluster, a.lead = moments.lead;
  a.ahead = moments.ahead;
  return a;
}
constexpr Moments wide_moments[] = {{0, 0}, {1, 0}, {0, 14}, {1, 14}};
inline SecateurSparse24Wide wide_arguments(Moments moments) {
  SecateurSparse24Wide a{};
  a.linear = linear_of(wide_rows, wide_columns, WideShape::tokens);
  a.warpgroups = WideShape::warpgroups, a.panels = WideShape::panels;
  a.tile_tokens = WideShape::tokens, a.stages = wide_stages;
  a.cluster_rows = a.cluster_tokens = a.cluster_steps = 1;
  a.blocks = wide_blocks, a.waves = 0, a.group = 1;
  a.late = moments.lead, a.ahead = moments.ahead;
  return a;
}

}  // namespace micro
