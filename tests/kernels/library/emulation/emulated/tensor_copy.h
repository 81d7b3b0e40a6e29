// secateur/device/tensor_copy.h on a CPU, after the PTX manual's description of tensor maps: tiled
// mode, two dimensions of 16-bit values, 128-byte swizzle, zeros beyond the matrix.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "emulated/cluster.h"
#include "emulated/device.h"

namespace secateur::device {

// What cuTensorMapEncodeTiled is told; the box is `box_rows` rows of 64 columns.
struct TensorMap {
  const uint8_t* base;
  int64_t columns;
  int64_t rows;
  int64_t row_bytes;  // from row to row
  int box_rows;
};

inline void prefetch_map(const TensorMap&) {}

// The conditions that the driver checks when it encodes a map.
inline void require_sound(const TensorMap& map) {
  if (reinterpret_cast<uintptr_t>(map.base) % 16 != 0) machine().fail("tensor map: base address");
  if (map.row_bytes % 16 != 0 || map.row_bytes < 2 * map.columns ||
      map.row_bytes >= int64_t{1} << 40) {
    machine().fail("tensor map: row stride");
  }
  if (map.box_rows < 1 || map.box_rows > 256) machine().fail("tensor map: box");
}

// Bits 4 to 6 of a shared address are combined with bits 7 to 9: a 16-byte chunk's place follows
// from the row of 128 bytes that it is in, eight of which repeat.
inline uint32_t swizzled128(uint32_t address) { return address ^ (((address >> 7) & 7) << 4); }

// Rows [first, end) of the box, as one landing.
inline void start_box_rows(uint32_t target, const TensorMap& map, int64_t column, int64_t row,
                           int first, int end, uint32_t barrier) {
  Machine& m = machine();
  emulation::Landing landing;
  landing.barrier = barrier;
  landing.counted = (end - first) * 128;
  struct Chunk {
    uint32_t target;
    const uint8_t* source;
    int valid;
  };
  std::vector<Chunk> chunks;
  for (int r = first; r < end; ++r) {
    const bool inside = row + r >= 0 && row + r < map.rows;
    for (int c = 0; c < 8; ++c) {
      const int64_t left = 2 * (map.columns - column - 8 * c);
      const int valid = inside ? static_cast<int>(std::clamp<int64_t>(left, 0, 16)) : 0;
      const uint8_t* source = map.base + (row + r) * map.row_bytes + 2 * (column + 8 * c);
      const uint32_t place = m.in_window(swizzled128(target + 128 * r + 16 * c));
      if (valid > 0) m.check_global(source, valid, false);
      if (valid > 0) m.copied(source, valid);
      m.require_fenced(place, 16);
      std::memset(m.shared(place, 16), emulation::poison, 16);
      chunks.push_back({place, source, valid});
    }
  }
  landing.write = [chunks, &m] {
    for (const Chunk& chunk : chunks) {
      uint8_t* to = m.shared(chunk.target, 16);
      std::memset(to, 0, 16);
      if (chunk.valid > 0) std::memcpy(to, chunk.source, chunk.valid);
    }
  };
  m.start_bulk(landing);
}

inline void copy_box(uint32_t target, const TensorMap& map, int column, int row,
                     uint32_t barrier) {
  require_sound(map);
  // 128 bytes are asked of every target; kernels here rely on whole repetitions of the swizzle.
  if (target % 1024 != 0) machine().fail("box: expected a target at a multiple of 1024");
  const int half = map.box_rows / 2;
  if (half > 0) start_box_rows(target, map, column, row, 0, half, barrier);
  start_box_rows(target, map, column, row, half, map.box_rows, barrier);
}

inline void prefetch_box(const TensorMap& map, int column, int row) {
  require_sound(map);
  for (int r = 0; r < map.box_rows; ++r) {
    const int64_t bytes = std::min<int64_t>(128, 2 * (map.columns - column));
    // A last chunk may be copied in part, but not asked for.
    const bool inside = row + r >= 0 && row + r < map.rows && bytes > 0;
    if (inside) machine().prefetch(map.base + (row + r) * map.row_bytes + 2 * column, bytes);
  }
}

inline void copy_box_multicast(uint32_t target, const TensorMap& map, int column, int row,
                               uint32_t barrier, uint16_t ranks) {
  if (ranks == 0 || ranks >> machine().cluster() != 0) {
    machine().fail("multicast: expected thread blocks of the cluster");
  }
  for (int rank = 0; rank < machine().cluster(); ++rank) {
    if (ranks >> rank & 1) {
      copy_box(map_shared(target, rank), map, column, row, map_shared(barrier, rank));
    }
  }
}

inline uint64_t read_again_policy() { return 0; }

}  // namespace secateur::device
