// The stream of stream.h by boxes of a row-major matrix, as the low-rank kernels read factors: a
// thread block owns `box_rows` rows at a time, and a stage is boxes of 64 columns side by side.
#pragma once

#include "secateur/device/tensor_copy.h"
#include "stream.h"

namespace micro {

constexpr int box_columns = 64;
constexpr int box_row_bytes = 2 * box_columns;
constexpr int box_alignment = 1024;  // at which the swizzle repeats

struct BoxStream {
  device::TensorMap map;  // of 16-bit values
  int row_blocks;         // of box_rows rows
  int box_rows;
  int row_stages;   // of a row block
  int stage_boxes;
  int stages;
  int blocks;  // thread blocks, which share the row blocks

  SECATEUR_INLINE int stage_bytes() const { return stage_boxes * box_rows * box_row_bytes; }
};

SECATEUR_INLINE int shared_bytes(const BoxStream& s) {
  return box_alignment + s.stages * (s.stage_bytes() + 16);
}

SECATEUR_DEVICE void produce(const BoxStream& s, Ring ring, int first, int end) {
  for (int block = first; block < end; ++block) {
    for (int stage = 0; stage < s.row_stages; ++stage) {
      device::barrier_wait(ring.empty(), ring.phase ^ 1);
      device::barrier_arrive_expect(ring.full(), s.stage_bytes());
      for (int i = 0; i < s.stage_boxes; ++i) {
        const int column = (stage * s.stage_boxes + i) * box_columns;
        device::copy_box(ring.data() + i * s.box_rows * box_row_bytes, s.map, column,
                         block * s.box_rows, ring.full());
      }
      ring.advance();
    }
  }
}

// By two warps: lane 0 of each works.
SECATEUR_DEVICE void run_boxes(const BoxStream& s, uint32_t shared) {
  const uint32_t base = (shared + box_alignment - 1) / box_alignment * box_alignment;
  const Ring ring{base, s.stages, s.stage_bytes()};
  if (device::thread() == 0) init_barriers(ring, 1);
  device::sync_block();
  const int64_t block = device::block();
  const int first = static_cast<int>(block * s.row_blocks / s.blocks);
  const int end = static_cast<int>((block + 1) * s.row_blocks / s.blocks);
  if (device::thread() == 0) {
    produce(s, ring, first, end);
  } else if (device::thread() == 32) {
    release<1>(ring, static_cast<int64_t>(end - first) * s.row_stages);
  }
  device::sync_warp();
}

}  // namespace micro
