// What timeline.cu measures: no CUDA in here.
#pragma once

#include <array>

#include "sparse24_skinny/arguments.h"

namespace micro {

constexpr int most_tokens = 16;
constexpr int row_tiles = 2;

struct Case {
  int rows, columns, warps, stages, blocks, cluster;

  // Steps left to ask for when the next kernel may start.
  constexpr std::array<int, 4> leads() const { return {0, stages / 2, stages, 2 * stages}; }
};

constexpr Case cases[] = {
    {4096, 4096, 8, 5, 128, 8},  {4096, 4096, 6, 7, 88, 4},   {8192, 8192, 8, 5, 128, 4},
    {8192, 8192, 2, 16, 256, 2}, {28672, 4096, 8, 5, 132, 1}, {28672, 4096, 8, 11, 112, 1},
    {4096, 14336, 4, 10, 128, 4},
};
constexpr int case_count = sizeof cases / sizeof cases[0];

// All but pointers.
inline SecateurSparse24Skinny arguments_of(const Case& c, int tokens, int lead) {
  SecateurSparse24Skinny a{};
  a.linear.x_stride = a.linear.columns = c.columns;
  a.linear.rows = c.rows;
  a.linear.tokens = tokens;
  a.linear.value_type = SECATEUR_BF16;
  a.warps = c.warps, a.row_tiles = row_tiles, a.stages = c.stages;
  a.blocks = c.blocks, a.cluster = c.cluster, a.lead = lead;
  return a;
}

}  // namespace micro
