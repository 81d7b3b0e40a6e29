// The warpgroups that multiply: each owns panels of rows, keeps its sums in registers to the end of
// a segment, and never waits for another but through the ring.
#pragma once

#include "secateur/device/cluster.h"
#include "secateur/device/wgmma.h"
#include "secateur/wide/cluster_sum.h"
#include "secateur/wide/problem.h"
#include "secateur/wide/producer.h"
#include "secateur/wide/reduce.h"
#include "secateur/wide/write.h"

namespace secateur::wide {

// A warp's weights of one panel and one step, as the instruction takes them.
struct Fragments {
  Words4 values[2];
  uint32_t metadata;
};

SECATEUR_DEVICE void load_fragments(Fragments& fragments, uint32_t tile, int lane) {
  using namespace fragment24;
  fragments.metadata = device::load_shared4(tile + metadata_offset(lane));
  fragments.values[0] = device::load_shared16(tile + value_offset(0, lane));
  fragments.values[1] = device::load_shared16(tile + value_offset(1, lane));
}

// Begins one step of a panel, as a group of its own.
template <typename Value, int TokenTiles>
SECATEUR_DEVICE void begin_step(float (&sums)[TokenTiles][accumulator::items],
                                const Fragments& fragments, uint64_t tokens) {
  constexpr int half = fragment24::fragment_columns * 2;  // bytes of x
  device::wgmma_fence();
  device::wgmma_sparse<Value, 0>(sums, fragments.values[0], fragments.metadata, tokens);
  device::wgmma_sparse<Value, 1>(sums, fragments.values[1], fragments.metadata,
                                 matrix_descriptor::advanced(tokens, half));
  device::wgmma_commit();
}

// What a warp of a warpgroup that multiplies knows of itself.
template <typename Shape>
struct Consumer {
  Ring<Shape> ring;
  uint32_t tiles[Shape::panels];  // its sub-tiles within the weights of a stage
  uint32_t mate_empty;            // empty(0) of the thread block that the lane tells of releases
  int lane;
  bool tells;
  bool alone;  // shares nothing that is fetched

  SECATEUR_DEVICE void wait_full() const {
    device::barrier_wait(ring.full(ring.stage), ring.phase);
  }
  // The warp has read what it needs of a stage, and so have its products: they took its weights
  // from registers, and their end, which has been waited for, is a fence between its reads and the
  // copies that follow as well.
  SECATEUR_DEVICE void release(int stage) const {
    if (!tells) return;
    if (alone) {
      device::barrier_arrive(ring.empty(stage));
    } else {
      device::barrier_arrive_mapped(mate_empty + 8 * stage);
    }
  }
  SECATEUR_DEVICE void load(Fragments& fragments, int panel) const {
    load_fragments(fragments, ring.weights() + tiles[panel], lane);
  }
  SECATEUR_DEVICE uint64_t tokens() const { return matrix_descriptor::of_tokens(ring.x()); }
};

// Goes on to the next step, whose first fragments are loaded; false if that was the last one. The
// stage behind is released once no product reads it: one group is left pending.
template <typename Shape>
SECATEUR_DEVICE bool next_step(Consumer<Shape>& self, int& left) {
  if (--left == 0) return false;
  self.ring.advance();
  self.wait_full();
  return true;
}

// Sums of `steps` steps. Two sets of fragments take turns: while the products of one are under way,
// the other, whose products have ended, is loaded.
template <typename Value, typename Shape>
SECATEUR_DEVICE void multiply(Sums<Shape>& sums, Consumer<Shape>& self, int steps) {
  Fragments even, odd;
  int left = steps, behind = -1;
  clear_sums<Shape::panels, Shape::token_tiles>(sums);
  const auto release_behind = [&] {
    if (behind >= 0) self.release(behind);
    behind = self.ring.stage;
  };
  self.wait_full();
  self.load(even, 0);
  while (true) {
    begin_step<Value>(sums[0], even, self.tokens());
    device::wgmma_wait<1>();
    release_behind();
    if constexpr (Shape::panels == 2) {
      self.load(odd, 1);
      begin_step<Value>(sums[1], odd, self.tokens());
      device::wgmma_wait<1>();
    } else {
      if (!next_step(self, left)) break;
      self.load(odd, 0);
      begin_step<Value>(sums[0], odd, self.tokens());
      device::wgmma_wait<1>();
      release_behind();
    }
    if (!next_step(self, left)) break;
    self.load(even, 0);
  }
  device::wgmma_wait<0>();
#pragma unroll
  for (int p = 0; p < Shape::panels; ++p) device::own(sums[p]);
  self.release(self.ring.stage);
  self.ring.advance();
}

// A thread block beyond the weight's rows only keeps the ring of its mates going.
template <typename Shape>
SECATEUR_DEVICE void skip(Consumer<Shape>& self, int steps) {
  for (int left = steps; left > 0; --left) {
    self.wait_full();
    device::sync_warp();  // no lane is a round behind
    self.release(self.ring.stage);
    self.ring.advance();
  }
}

template <typename Value, typename Shape>
SECATEUR_DEVICE void consume(const Problem& problem, Ring<Shape> ring, const Member& member,
                             int warp, int lane) {
  const Cluster& cluster = member.cluster;
  Consumer<Shape> self{ring, {}, 0, lane, lane < cluster.mates(), cluster.mates() == 1};
  if (!self.alone && self.tells) {
    self.mate_empty = device::map_shared(ring.empty(0), member.mate(lane));
  }
  const int mine = warp / warpgroup_warps * Shape::panels;
  TileWalk walk(problem.schedule, member.index);
  TileSegment segment;
#pragma unroll 1
  while (walk.next(segment)) {
    const int panel = first_panel<Shape>(problem, member, segment.tile);
    const int here = panels_here<Shape>(problem, panel);
    const TileSegment own = member.own(segment);
    const int steps = own.end - own.first;
    if (here == 0) {
      skip(self, steps);
      continue;
    }
#pragma unroll
    for (int p = 0; p < Shape::panels; ++p) {
      // Panels that do not exist: another one is multiplied in their place, and not written.
      const int read = mine + p < here ? mine + p : here - 1;
      self.tiles[p] =
          read * fragment24::unit_bytes + warp % warpgroup_warps * fragment24::tile_bytes;
    }
    const Sharers sharers = sharers_of(problem.schedule, segment);
    Sums<Shape> sums;
    multiply<Value>(sums, self, steps);
    if constexpr (Shape::splits_steps) {
      if (problem.cluster.steps > 1) {
        sum_in_cluster<Value, Shape>(sums, problem, member, ring.base, segment.tile);
        continue;
      }
    }
    if (mine >= here) continue;
    if (sharers.count > 1 && !reduce<Shape>(sums, problem, member, sharers, segment.tile, warp)) {
      continue;
    }
    const int tile = (panel + mine) * fragment24::tiles_per_unit + warp % warpgroup_warps;
    write<Value, Shape>(problem.output, tile, first_token<Shape>(problem, member, segment.tile),
                        sums, ring.staging(warp), lane);
  }
}

}  // namespace secateur::wide
