// The two warps that fill the ring: one brings weights by bulk copies, the other x by the tensor
// memory accelerator. Each announces its own bytes, so that weights can be under way before x
// exists.
#pragma once

#include "secateur/cluster_sums.h"
#include "secateur/device/cluster.h"
#include "secateur/device/marks.h"
#include "secateur/wide/problem.h"

namespace secateur::wide {

constexpr int full_arrivals = 2;

// Panels of a thread block that exist: the last row block may have fewer, or none.
template <typename Shape>
SECATEUR_INLINE int panels_here(const Problem& problem, int first_panel) {
  const int left = fragment24::panels(problem.output.rows) - first_panel;
  return left < 0 ? 0 : (left < Shape::block_panels ? left : Shape::block_panels);
}

template <typename Shape>
SECATEUR_INLINE int first_panel(const Problem& problem, const Member& member, int group) {
  const int row_block = problem.schedule.place(group).row_block;
  return (row_block * member.cluster.rows + member.row) * Shape::block_panels;
}

template <typename Shape>
SECATEUR_INLINE int first_token(const Problem& problem, const Member& member, int group) {
  const int token_block = problem.schedule.place(group).token_block;
  return (token_block * member.cluster.tokens + member.token) * Shape::tokens;
}

// At the end of a tile whose steps a cluster splits: the ring holds sums until all have read them.
SECATEUR_DEVICE void leave_ring_to_sums(const Member& member) {
  if (member.cluster.steps > 1) cluster_sums::attend();
}
// Before the next tile, by each thread that copies: what the others of the cluster have read of
// this ring, and of those of its mates that it copies into, their last barrier has shown it.
// Between these reads and its copies one fence has to stand, wherever (PTX ISA, "Causality Order");
// here only those who go on pay for it.
SECATEUR_DEVICE void take_ring_from_sums(const Member& member) {
  if (member.cluster.steps > 1) device::fence_before_cluster_copies();
}

// For the copying warpgroup's other warps.
SECATEUR_DEVICE void attend_sums(const Problem& problem, const Member& member) {
  if (member.cluster.steps == 1) return;
  TileWalk walk(problem.schedule, member.index);
  TileSegment segment;
  while (walk.next(segment)) cluster_sums::attend();
}

// Weights that the ring has no room for yet, into the L2 cache: `part` of the units from `first` to
// `end` behind the one at `source`. While the kernel in front ends and x arrives, memory would have
// nothing to do once the ring is full.
SECATEUR_DEVICE void ask_ahead(const uint8_t* source, int part, int first, int end) {
#pragma unroll 1
  for (int i = first + 1; i <= end; ++i) {
    device::prefetch_bulk(source + i * fragment24::unit_bytes, part);
  }
}

// One unit of each panel, a lane each. Thread blocks that share weights fetch a part each.
template <typename Shape>
SECATEUR_DEVICE void produce_weights(const Problem& problem, Ring<Shape> ring,
                                     const Member& member, int lane) {
  using fragment24::unit_bytes;
  const TileSchedule& schedule = problem.schedule;
  const int64_t panel_stride = fragment24::unit_offset(1, 0, schedule.steps);
  const uint64_t policy =
      schedule.token_blocks == 1 ? device::read_once_policy() : device::read_again_policy();
  const int part = unit_bytes / member.cluster.tokens;
  const uint16_t mates = member.token_mates();
  // The successor may ask for its weights behind the first ones of this kernel, or behind all.
  int first_ones = problem.late ? INT32_MAX : ring.stages;
  int filling = ring.stages;
  const int ahead = problem.ahead;
  TileWalk walk(schedule, member.index);
  TileSegment segment;
  for (bool again = false; walk.next(segment); again = true) {
    if (again) take_ring_from_sums(member);
    const int panel = first_panel<Shape>(problem, member, segment.tile);
    const int here = panels_here<Shape>(problem, panel);
    const TileSegment own = member.own(segment);
    const uint8_t* source = problem.weight +
                            fragment24::unit_offset(panel, own.first, schedule.steps) +
                            lane * panel_stride + member.token * part;
    for (int left = own.end - own.first; left > 0; --left) {
      device::barrier_wait_cluster(ring.empty(ring.stage), ring.phase ^ 1);
      const uint32_t full = ring.full(ring.stage);
      if (lane == 0) device::barrier_arrive_expect(full, here * unit_bytes);
      device::sync_warp();
      const uint32_t target = ring.weights() + lane * unit_bytes + member.token * part;
      if (lane < here) {
        if (member.cluster.tokens == 1) {
          device::copy_bulk(target, source, unit_bytes, full, policy);
        } else {
          device::copy_bulk_multicast(target, source, part, full, mates, policy);
        }
      }
      if (--first_ones == 0) let_successor_start();
      --filling;
      device::mark(device::Point::weights_asked, filling == 0);
      if (ahead > 0 && filling <= 0 && lane < here) {
        // With the last stage of the first ring the ones behind it, then one a step.
        const int before = filling == 0 ? 0 : ahead - 1;
        ask_ahead(source, part, before, left - 1 < ahead ? left - 1 : ahead);
      }
      source += unit_bytes;
      ring.advance();
    }
    leave_ring_to_sums(member);
  }
  if (first_ones > 0) let_successor_start();
  device::mark(device::Point::last_asked);
}

// Until the last use of every stage is released: then no mate will reach this thread block's
// barriers any more, and it may leave.
template <typename Shape>
SECATEUR_DEVICE void wait_for_releases(Ring<Shape>& ring) {
  for (int i = 0; i < ring.stages; ++i) {
    device::barrier_wait_cluster(ring.empty(ring.stage), ring.phase ^ 1);
    ring.advance();
  }
}

// Thread blocks that share x fetch a part of the tokens each.
template <typename Shape>
SECATEUR_DEVICE void produce_x(const Problem& problem, Ring<Shape> ring, const Member& member,
                               int lane) {
  const int part = Shape::tokens / member.cluster.rows;
  const uint32_t offset = member.row * part * x_tile::token_bytes;
  const uint16_t mates = member.row_mates();
  TileWalk walk(problem.schedule, member.index);
  TileSegment segment;
  for (bool again = false; walk.next(segment); again = true) {
    if (again) take_ring_from_sums(member);
    const int token = first_token<Shape>(problem, member, segment.tile) + member.row * part;
    const TileSegment own = member.own(segment);
    for (int step = own.first; step < own.end; ++step) {
      device::barrier_wait_cluster(ring.empty(ring.stage), ring.phase ^ 1);
      if (lane == 0) {
        const uint32_t full = ring.full(ring.stage), target = ring.x() + offset;
        const int column = step * x_tile::columns;
        device::barrier_arrive_expect(full, Shape::x_bytes);
        if (member.cluster.rows == 1) {
          device::copy_box(target, problem.x, column, token, full);
        } else {
          device::copy_box_multicast(target, problem.x, column, token, full, mates);
        }
      }
      device::sync_warp();
      device::mark_first(device::Point::x_asked, step == own.first);
      ring.advance();
    }
    leave_ring_to_sums(member);
  }
  wait_for_releases(ring);
}

}  // namespace secateur::wide
