// The warpgroups that multiply: each owns panels of rows, keeps its sums in registers to the end of
// a segment, and never waits for another but through the ring.
#pragma once

#include "secateur/device/cluster.h"
#include "secateur/device/marks.h"
#include "secateur/device/recompute.h"
#include "secateur/device/wgmma.h"
#include "secateur/wide/cluster_sum.h"
#include "secateur/wide/problem.h"
#include "secateur/wide/producer.h"
#include "secateur/wide/reduce.h"
#include "secateur/wide/ring_walk.h"
#include "secateur/wide/write.h"

namespace secateur::wide {

// A warp's weights of one panel and one step, as the instruction takes them.
struct Fragments {
  Words4 values[2];
  uint32_t metadata;
  uint32_t full;  // barrier of the stage that they came from
};

// Begins one step of a panel, as a group of its own. `tokens`: the lower half of their descriptor.
template <typename Value, int TokenTiles>
SECATEUR_DEVICE void begin_step(float (&sums)[TokenTiles][accumulator::items],
                                const Fragments& fragments, uint32_t tokens) {
  using namespace matrix_descriptor;
  constexpr int half = fragment24::fragment_columns * 2;  // bytes of x
  device::wgmma_fence();
  device::wgmma_sparse<Value, 0>(sums, fragments.values[0], fragments.metadata,
                                 of_lower_half(tokens));
  device::wgmma_sparse<Value, 1>(sums, fragments.values[1], fragments.metadata,
                                 of_lower_half(tokens + units(half)));
  device::wgmma_commit();
}

// A warp of a warpgroup that multiplies, on its way through a segment.
template <typename Shape>
struct Consumer {
  RingWalk<Shape> walk;
  // Whether the lane tells a thread block of releases, and how far it is from a full barrier here
  // to the empty one there. Its own it tells the same way: two ways would be more instructions.
  bool tells;
  uint32_t to_empty = 0;
  // What the lane reads of each panel, within the weights of a stage.
  uint32_t values[Shape::panels];
  uint32_t metadata[Shape::panels];

  SECATEUR_DEVICE Consumer(const Ring<Shape>& ring, const Member& member, int steps)
      : walk(ring, steps), tells(device::lane() < member.cluster.mates()) {
    if (tells) {
      const int mate = member.mate(device::lane());
      to_empty = device::map_shared(ring.empty(0), mate) - ring.full(0);
    }
    to_empty = kept(to_empty);
  }
  // Lets it read `tile`, an offset within the weights of a stage, for a panel.
  SECATEUR_DEVICE void read_from(int panel, int tile) {
    using namespace fragment24;
    values[panel] = kept(tile + value_offset(0, device::lane()));
    metadata[panel] = kept(tile + metadata_offset(device::lane()));
  }

  SECATEUR_DEVICE bool is_full() const {
    return device::barrier_passed_cluster(walk.full(), walk.phase());
  }
  SECATEUR_DEVICE void wait_full() const {
    device::barrier_wait_cluster(walk.full(), walk.phase());
  }
  SECATEUR_DEVICE void load(Fragments& fragments, int panel) const {
    const uint32_t source = values[panel] + walk.weights();
    fragments.metadata = device::load_shared4(metadata[panel] + walk.weights());
    fragments.values[0] = device::load_shared16(source);
    fragments.values[1] = device::load_shared16(source + fragment24::fragment_bytes);
    fragments.full = walk.full();
  }
  // The warp has read what it needs of a stage, and so have its products: they took its weights
  // from registers, and their end, which has been waited for, is a fence between its reads and the
  // copies that follow as well.
  SECATEUR_DEVICE void release(uint32_t full) const {
    if (tells) device::barrier_arrive_mapped(to_empty + full);
  }

 private:
  // Kept in a register as it is, instead of made from its parts in each step: what is uniform is
  // added by the instructions that take it as an address.
  SECATEUR_DEVICE static uint32_t kept(uint32_t offset) {
    return device::anew(static_cast<int>(offset));
  }
};

// Loads the next step into `ended`, whose products are all that is waited for: those begun last go
// on. False if there is no next step. Whether its stage is full is asked before that wait, so that
// its products follow soon after; but where it is not full, that may be for want of the stage that
// is released here, so that this must come before waiting.
template <typename Shape>
SECATEUR_DEVICE bool load_next(Consumer<Shape>& self, Fragments& ended) {
  if (!self.walk.next()) return false;
  const bool full = self.is_full();
  device::wgmma_wait<1>();
  self.release(ended.full);
  if (!full) self.wait_full();
  self.load(ended, 0);
  return true;
}

// Sums of a segment, of one panel. Two sets of fragments take turns: while the products of one are
// under way, the other is loaded. The first step stands apart: there is nothing to release yet.
template <typename Value, typename Shape>
SECATEUR_DEVICE void multiply(float (&sums)[1][Shape::token_tiles][accumulator::items],
                              Consumer<Shape>& self) {
  Fragments even, odd;
  self.wait_full();
  device::mark_first(device::Point::first_full);
  self.load(even, 0);
  begin_step<Value>(sums[0], even, self.walk.tokens());
  const bool several = self.walk.next();
  if (several) {
    self.wait_full();
    self.load(odd, 0);
    while (true) {
      begin_step<Value>(sums[0], odd, self.walk.tokens());
      if (!load_next(self, even)) break;
      begin_step<Value>(sums[0], even, self.walk.tokens());
      if (!load_next(self, odd)) break;
    }
  }
  device::mark(device::Point::last_full);
  device::wgmma_wait<0>();
  device::own(sums[0]);
  self.release(even.full);
  if (several) self.release(odd.full);
}

// The same for two panels, a set of fragments each: one is loaded while the products of the other
// are under way. A stage is released once those of the second have ended.
template <typename Value, typename Shape>
SECATEUR_DEVICE void multiply(float (&sums)[2][Shape::token_tiles][accumulator::items],
                              Consumer<Shape>& self) {
  Fragments first, second;
  self.wait_full();
  device::mark_first(device::Point::first_full);
  self.load(first, 0);
  begin_step<Value>(sums[0], first, self.walk.tokens());
  self.load(second, 1);
  begin_step<Value>(sums[1], second, self.walk.tokens());
  while (self.walk.next()) {
    const bool full = self.is_full();
    device::wgmma_wait<1>();
    if (!full) self.wait_full();
    self.load(first, 0);
    begin_step<Value>(sums[0], first, self.walk.tokens());
    device::wgmma_wait<1>();
    self.release(second.full);
    self.load(second, 1);
    begin_step<Value>(sums[1], second, self.walk.tokens());
  }
  device::mark(device::Point::last_full);
  device::wgmma_wait<0>();
  device::own(sums[0]);
  device::own(sums[1]);
  self.release(second.full);
}

// A thread block beyond the weight's rows only keeps the ring of its mates going.
template <typename Shape>
SECATEUR_DEVICE void skip(Consumer<Shape>& self) {
  do {
    self.wait_full();
    device::sync_warp();  // no lane is a round behind
    self.release(self.walk.full());
  } while (self.walk.next());
}

template <typename Value, typename Shape>
SECATEUR_DEVICE void consume(const Problem& problem, Ring<Shape> ring, const Member& member,
                             int warp) {
  constexpr bool keeps_token = blocks_per_sm<Shape> == 1;
  const int mine = warp / warpgroup_warps * Shape::panels;
  TileWalk walk(problem.schedule, member.index);
  TileSegment segment;
#pragma unroll 1
  while (walk.next(segment)) {
    const int panel = first_panel<Shape>(problem, member, segment.tile);
    const int here = panels_here<Shape>(problem, panel);
    const TileSegment own = member.own(segment);
    Consumer<Shape> self(ring, member, own.end - own.first);
    if (here == 0) {
      skip(self);
      self.walk.leave(ring);
      if (member.cluster.steps > 1) cluster_sums::attend();
      continue;
    }
#pragma unroll
    for (int p = 0; p < Shape::panels; ++p) {
      // Panels that do not exist: another one is multiplied in their place, and not written.
      const int read = mine + p < here ? mine + p : here - 1;
      self.read_from(p, read * fragment24::unit_bytes +
                            warp % warpgroup_warps * fragment24::tile_bytes);
    }
    const Sharers sharers = sharers_of(problem.schedule, segment);
    // Two divisions: not behind the last products, where there are registers to keep it in.
    int token = 0;
    if (keeps_token) token = device::anew(first_token<Shape>(problem, member, segment.tile));
    Sums<Shape> sums;
    clear_sums(sums);
    multiply<Value>(sums, self);
    self.walk.leave(ring);
    device::mark(device::Point::handed_over);
    if constexpr (Shape::splits_steps) {
      if (member.cluster.steps > 1) {
        sum_in_cluster<Value, Shape>(sums, problem, member, ring.base, segment.tile);
        device::mark(device::Point::summed);
        continue;
      }
    }
    if (mine >= here) continue;
    if (sharers.count > 1 && !reduce<Shape>(sums, problem, member, sharers, segment.tile, warp)) {
      continue;
    }
    device::mark(device::Point::summed);
    const int tile = (panel + mine) * fragment24::tiles_per_unit + warp % warpgroup_warps;
    if (!keeps_token) token = first_token<Shape>(problem, member, segment.tile);
    write<Value, Shape>(problem.output, tile, token, sums, ring.staging(warp));
  }
}

}  // namespace secateur::wide
