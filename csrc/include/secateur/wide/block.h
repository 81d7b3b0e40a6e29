// The wide kernel's thread block: warpgroups that multiply, and one that copies.
#pragma once

#include "secateur/device/cluster.h"
#include "secateur/device/marks.h"
#include "secateur/device/wgmma.h"
#include "secateur/wide/consumer.h"
#include "secateur/wide/problem.h"
#include "secateur/wide/producer.h"
#include "secateur/wide/registers.h"

namespace secateur::wide {

template <typename Shape>
SECATEUR_DEVICE void initialise(const Problem& problem, const Ring<Shape>& ring) {
  const int released_by = Shape::warps * problem.cluster.mates();
  for (int i = 0; i < problem.stages; ++i) {
    device::barrier_init(ring.full(i), full_arrivals);
    device::barrier_init(ring.empty(i), released_by);
  }
  device::barrier_init_fence();
  device::prefetch_map(problem.x);
}

// `shared` has shared_bytes() bytes and is 16-byte aligned.
template <typename Value, typename Shape>
SECATEUR_DEVICE void run_block(const Problem& problem, uint32_t shared) {
  device::mark_first(device::Point::started);
  constexpr uint32_t mask = matrix_descriptor::swizzle_bytes - 1;
  const int warp = device::shuffle(device::thread() / warp_lanes, 0), lane = device::lane();
  const int rank = problem.cluster.size() == 1 ? 0 : device::cluster_rank();
  const Member member(problem.cluster, device::block(), rank);
  // By way of a shuffle, so that the compiler keeps it instead of asking for it in every step.
  const Ring<Shape> ring{{device::shuffle((shared + mask) & ~mask, 0), problem.stages}};
  if (device::thread() == 0) initialise<Shape>(problem, ring);
  if (problem.cluster.mates() == 1) {
    device::sync_block();
  } else {
    // What initialise() wrote is published by its own fence.
    device::cluster_arrive_relaxed();
    device::cluster_wait();
  }
  if (warp >= Shape::warps) {
    device::give_registers<Registers<Shape>::producer>();
    if (warp == Shape::warps) produce_weights<Shape>(problem, ring, member, lane);
    if (warp == Shape::warps + 1) {
      device::wait_for_predecessor();
      device::mark(device::Point::predecessor_ended);
      produce_x<Shape>(problem, ring, member, lane);
    }
    if (warp > Shape::warps + 1) attend_sums(problem, member);
  } else {
    device::take_registers<Registers<Shape>::consumer>();
    device::wait_for_predecessor();
    consume<Value, Shape>(problem, ring, member, warp);
  }
  device::mark(device::Point::left);
}

}  // namespace secateur::wide
