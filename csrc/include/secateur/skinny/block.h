// The skinny kernel's thread block: rows are stationary, weights and x stream through one ring.
#pragma once

#include "secateur/device.h"
#include "secateur/device/marks.h"
#include "secateur/skinny/cluster_sum.h"
#include "secateur/skinny/consumer.h"
#include "secateur/skinny/problem.h"
#include "secateur/skinny/producer.h"

namespace secateur::skinny {

// Warps 0 to warps - 1 multiply, the last one copies. `shared` has shared_bytes() bytes and is
// 128-byte aligned. Bulk: for sm_90, with bulk copies and clusters.
template <typename Value, typename Shape, bool Bulk>
SECATEUR_DEVICE void run_block(const Problem& problem, uint32_t shared) {
  device::mark_first(device::Point::started);
  const int warp = device::thread() / warp_lanes, lane = device::lane();
  const Ring ring{{shared, problem.stages}, problem.stage_bytes};
  if (device::thread() == 0) {
    for (int i = 0; i < problem.stages; ++i) {
      device::barrier_init(ring.full(i), full_arrivals(Bulk));
      device::barrier_init(ring.empty(i), problem.warps);
    }
    if (Bulk && problem.cluster > 1) exchange_of<Shape>(problem, ring.exchange()).init();
    device::barrier_init_fence();
  }
  device::sync_block();
  // Awaited before sums are handed over: what thread 0 wrote is published by its own fence.
  if (Bulk && problem.cluster > 1) device::cluster_arrive_relaxed();
  if (warp == problem.warps) {
    produce<Shape, Bulk>(problem, ring, lane);
    if (Bulk && problem.cluster > 1) device::cluster_wait();
  } else {
    consume<Value, Shape, Bulk>(problem, ring, warp, lane);
  }
  device::mark(device::Point::left);
}

}  // namespace secateur::skinny
