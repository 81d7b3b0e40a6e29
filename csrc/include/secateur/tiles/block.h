// The tiles kernel's thread block: weights and x of tiles of y stream through one ring.
#pragma once

#include "secateur/device.h"
#include "secateur/tiles/problem.h"
#include "secateur/tiles/warp.h"

namespace secateur::tiles {

// `shared` has shared_bytes() bytes and is 128-byte aligned.
template <typename Value, typename Shape>
SECATEUR_DEVICE void run_block(const Problem& problem, uint32_t shared) {
  const Ring<Shape> ring{{shared, problem.stages}};
  if (device::thread() == 0) {
    Ring<Shape> each = ring;
    for (int i = 0; i < problem.stages; ++i) {
      device::barrier_init(each.full(), Shape::threads);
      device::barrier_init(each.empty(), Shape::warps);
      each.advance();
    }
    device::barrier_init_fence();
  }
  device::sync_block();
  device::let_successor_start();
  compute<Value, Shape>(problem, ring);
}

}  // namespace secateur::tiles
