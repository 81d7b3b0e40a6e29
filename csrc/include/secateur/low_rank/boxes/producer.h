// The warp that fetches boxes: one lane of it asks, the copy engine does the rest.
#pragma once

#include "secateur/low_rank/boxes/problem.h"

namespace secateur::low_rank::boxes {

// Where the producer stands: row blocks one after the other, in each all stages of the range.
struct Walk {
  int block;
  int stage = 0;

  SECATEUR_INLINE void advance(const Range& range) {
    if (++stage == range.stages()) {
      stage = 0;
      ++block;
    }
  }
};

// Boxes of a stage from `row` on, each announced with its bytes by the one arrival. In two parts,
// where there are two: one from each row.
template <int Parts>
SECATEUR_DEVICE void fetch_boxes(uint32_t target, const device::TensorMap& map, const Range& range,
                                 int stage, const int (&row)[Parts], int box_bytes,
                                 uint32_t full) {
  const int boxes = range.boxes(stage);
  device::barrier_arrive_expect(full, boxes * box_bytes);
#pragma unroll 1
  for (int i = 0; i < boxes; ++i) {
    const int column = (range.first + stage * stage_boxes + i) * box_columns;
#pragma unroll
    for (int part = 0; part < Parts; ++part) {
      device::copy_box(target + i * box_bytes + part * (box_bytes / Parts), map, column, row[part],
                       full);
    }
  }
}

// The same boxes into the L2 cache.
template <int Parts>
SECATEUR_DEVICE void prefetch_boxes(const device::TensorMap& map, const Range& range, int stage,
                                    const int (&row)[Parts]) {
  const int boxes = range.boxes(stage);
#pragma unroll 1
  for (int i = 0; i < boxes; ++i) {
    const int column = (range.first + stage * stage_boxes + i) * box_columns;
#pragma unroll
    for (int part = 0; part < Parts; ++part) device::prefetch_box(map, column, row[part]);
  }
}

// `stages` in all. A task says which weights a stage has, which are older than the kernel in front,
// and how many of them to ask for ahead of the ring; what else it needs, which is not older; and when
// its successor's first stages may be asked for, counted from the end.
template <typename Task>
SECATEUR_DEVICE void produce(const Task& task, Ring ring, Walk walk, const Range& range,
                             int stages) {
  const int early = stages < ring.stages ? stages : ring.stages;
  const int ahead = task.ahead();
  Ring first = ring;
  Walk behind = walk;
#pragma unroll 1
  for (int i = 0; i < early; ++i, first.advance(), behind.advance(range)) {
    task.fetch_weights(first.place(), behind, first.full());
  }
  const int last = stages - task.stages_behind_successor(early);
  if (last <= early) device::let_successor_start();
  // While the kernel in front ends, memory would have nothing to do once the ring is full.
#pragma unroll 1
  for (int i = early; i < early + ahead && i < stages; ++i, behind.advance(range)) {
    task.prefetch_weights(behind);
  }
  device::wait_for_predecessor();
#pragma unroll 1
  for (int i = 0; i < stages; ++i, ring.advance(), walk.advance(range)) {
    if (i >= early) {
      device::barrier_wait(ring.empty(), ring.phase ^ 1);
      task.fetch_weights(ring.place(), walk, ring.full());
      if (ahead > 0 && i + ahead < stages) {
        task.prefetch_weights(behind);
        behind.advance(range);
      }
    }
    task.fetch_operand(ring.place(), walk, ring.full());
    if (i + 1 == last && last > early) device::let_successor_start();
  }
}

}  // namespace secateur::low_rank::boxes
