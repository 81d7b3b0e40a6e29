// How a thread block's registers are shared out: it starts with equal parts, and the warpgroup that
// copies hands most of its own to those that multiply.
#pragma once

#include "secateur/wide/problem.h"

namespace secateur::wide {

// Thread blocks that share a multiprocessor: where sums are few, the next kernel's can start early.
template <typename Shape>
constexpr int blocks_per_sm = Shape::warpgroups == 2 && Shape::panels * Shape::token_tiles <= 8 ? 2
                                                                                               : 1;

template <typename Shape>
struct Registers {
  static constexpr int file = 65536;
  static constexpr int step = 8;
  // What ptxas gives a thread for this many of them: launch bounds ask for it.
  static constexpr int start = file / (Shape::threads * blocks_per_sm<Shape>) / step * step;
  static constexpr int producer = start >= 160 ? 40 : 32;
  static constexpr int left = (start - producer) / Shape::warpgroups / step * step;
  static constexpr int consumer = start + left < 240 ? start + left : 240;

  // More than there are would make the warpgroups wait for ever.
  static_assert(Shape::warpgroups * consumer + producer <= (Shape::warpgroups + 1) * start,
                "the register pool");
  static_assert(producer >= 24 && consumer <= 256 && start <= 256, "what setmaxnreg takes");
  // Sums, two sets of fragments, addresses.
  static_assert(consumer >= Shape::panels * Shape::tokens / 2 + 18 + 20, "sums in registers");
};

}  // namespace secateur::wide
