// A stream of bulk copies through a ring of stages, as the kernels have it, without arithmetic: one
// thread copies, another one waits and gives the stage back. A cluster may share what it reads:
// every thread block then copies its part of a stage to all of them.
#pragma once

#include "secateur/device/cluster.h"
#include "secateur/device/tensor_copy.h"

namespace micro {

namespace device = secateur::device;

constexpr int unit_bytes = 4608;  // a copy, as a unit of the packed weight

struct Stream {
  const uint8_t* source;
  int64_t units;        // that lie at `source`
  int64_t block_units;  // that each thread block reads, around the end of `source`
  int64_t block_start;  // unit where thread block b begins: b * block_start, around the end
  int stages;
  int stage_units;  // with clusters: a multiple of their size
  bool read_once;   // the bytes leave the L2 cache first
  bool prefetch;    // fills the ring before it waits for the predecessor
  uint32_t* sink;   // null, or where a word goes at the end
};

SECATEUR_INLINE int shared_bytes(const Stream& s) { return s.stages * (s.stage_units * unit_bytes + 16); }

struct Ring {
  uint32_t base;
  int stages, stage_bytes;
  int stage = 0;
  uint32_t phase = 0;
  SECATEUR_INLINE uint32_t data() const { return base + stage * stage_bytes; }
  SECATEUR_INLINE uint32_t full() const { return base + stages * stage_bytes + 8 * stage; }
  SECATEUR_INLINE uint32_t empty() const { return full() + 8 * stages; }
  SECATEUR_INLINE void advance() {
    if (++stage == stages) stage = 0, phase ^= 1;
  }
};

SECATEUR_DEVICE void init_barriers(const Ring& ring, int released_by) {
  for (int i = 0; i < ring.stages; ++i) {
    device::barrier_init(ring.full() + 8 * i, 1);
    device::barrier_init(ring.empty() + 8 * i, released_by);
  }
  device::barrier_init_fence();
}

template <int Cluster>
SECATEUR_DEVICE void fill_stage(const Stream& s, Ring& ring, int64_t unit, int rank,
                                           uint64_t policy) {
  const int share = s.stage_units / Cluster;
  device::barrier_arrive_expect(ring.full(), s.stage_units * unit_bytes);
  for (int i = rank * share; i < (rank + 1) * share; ++i) {
    int64_t from = unit + i;
    if (from >= s.units) from -= s.units;
    const uint8_t* source = s.source + from * unit_bytes;
    const uint32_t target = ring.data() + i * unit_bytes;
    if constexpr (Cluster == 1) {
      device::copy_bulk(target, source, unit_bytes, ring.full(), policy);
    } else {
      device::copy_bulk_multicast(target, source, unit_bytes, ring.full(), (1 << Cluster) - 1,
                                  policy);
    }
  }
}

template <int Cluster>
SECATEUR_DEVICE void produce(const Stream& s, Ring ring, int rank, int64_t stages) {
  const uint64_t policy = s.read_once ? device::read_once_policy() : device::read_again_policy();
  // Thread blocks of a cluster read the same.
  int64_t unit = device::block() / Cluster * s.block_start % s.units;
  const int64_t before = s.prefetch ? s.stages : 0;
  if (before == 0) device::wait_for_predecessor();
  for (int64_t i = 0; i < stages; ++i) {
    if (i == before && before > 0) device::wait_for_predecessor();
    device::barrier_wait_cluster(ring.empty(), ring.phase ^ 1);
    fill_stage<Cluster>(s, ring, unit, rank, policy);
    unit += s.stage_units;
    if (unit >= s.units) unit -= s.units;
    ring.advance();
  }
  if (stages <= before) device::wait_for_predecessor();
}

// Waits for each stage and gives it back.
template <int Cluster>
SECATEUR_DEVICE void release(Ring ring, int64_t stages) {
  for (int64_t i = 0; i < stages; ++i) {
    device::barrier_wait_cluster(ring.full(), ring.phase);
    if constexpr (Cluster == 1) {
      device::barrier_arrive(ring.empty());
    } else {
      for (int rank = 0; rank < Cluster; ++rank) {
        device::barrier_arrive_mapped(device::map_shared(ring.empty(), rank));
      }
    }
    ring.advance();
  }
}

template <int Cluster>
SECATEUR_DEVICE void consume(const Stream& s, Ring ring, int64_t stages) {
  release<Cluster>(ring, stages);
  device::wait_for_predecessor();
  if (s.sink != nullptr && device::block() == 0) {
    device::store(s.sink, device::load_shared4(ring.base));
  }
}

// By two warps: lane 0 of each works.
template <int Cluster>
SECATEUR_DEVICE void run_stream(const Stream& s, uint32_t base) {
  device::let_successor_start();
  Ring ring{base, s.stages, s.stage_units * unit_bytes};
  if (device::thread() == 0) init_barriers(ring, Cluster);
  if constexpr (Cluster > 1) device::sync_cluster();
  device::sync_block();
  const int64_t stages = s.block_units / s.stage_units;
  if (device::thread() == 0) {
    produce<Cluster>(s, ring, Cluster > 1 ? device::cluster_rank() : 0, stages);
  } else if (device::thread() == 32) {
    consume<Cluster>(s, ring, stages);
  } else {
    device::wait_for_predecessor();
  }
  device::sync_warp();
  if constexpr (Cluster > 1) device::sync_cluster();
}

}  // namespace micro
