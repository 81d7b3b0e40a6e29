// Sums of a group that several clusters share are added up.
#pragma once

#include "secateur/device/recompute.h"
#include "secateur/shared_sums.h"
#include "secateur/wide/problem.h"
#include "secateur/wide/write.h"

namespace secateur::wide {

// The clusters that share a group of tiles.
struct Sharers {
  int first;
  int count;  // 1: nobody else
  int later;  // whether the first one's range began in an earlier group
};

// Asked before sums take the registers: its divisions need many.
SECATEUR_DEVICE Sharers sharers_of(const TileSchedule& schedule, const TileSegment& segment) {
  Sharers sharers{0, 1, 0};
  if (!schedule.whole(segment)) {
    const int first = schedule.first_contributor(segment.tile);
    sharers = {first, schedule.last_contributor(segment.tile) - first + 1,
               schedule.later(first, segment.tile)};
  }
  return {device::anew(sharers.first), device::anew(sharers.count), device::anew(sharers.later)};
}

// Sums of part of K: true where this warp is the last for its rows of the group and has them all.
template <typename Shape>
SECATEUR_DEVICE bool reduce(Sums<Shape>& sums, const Problem& problem, const Member& member,
                            const Sharers& sharers, int group, int warp) {
  const TileSchedule& schedule = problem.schedule;
  const int size = member.cluster.size();
  float* workspace = problem.workspace + warp * warp_slot_floats(Shape::panels, Shape::token_tiles);
  uint32_t* counter =
      problem.counters +
      (static_cast<int64_t>(schedule.counter(group)) * size + member.rank) * Shape::warps + warp;
  return add_shares<Shape::panels, Shape::token_tiles>(
      sums, member.index - sharers.first, sharers.count, counter, [&](int i) {
        const bool later = i == 0 && sharers.later != 0;
        const int64_t slot =
            schedule.slot(sharers.first + i, later, problem.slots_per_block) * size + member.rank;
        // One address for all sums, instead of one for each that is kept from slot to slot.
        return device::anew(workspace + slot * Shape::slot_floats);
      });
}

}  // namespace secateur::wide
