// secateur/device/cluster.h on a CPU.
#pragma once

#include <cstring>

#include "emulated/device.h"

namespace secateur::device {

inline int cluster_rank() { return machine().cluster_rank(); }
inline uint32_t map_shared(uint32_t address, int rank) {
  return machine().map_shared(address, rank);
}
inline void cluster_arrive() {
  machine().publish(true);
  machine().cluster_arrive();
}
inline void cluster_arrive_shared() {
  machine().publish(false);
  machine().cluster_arrive();
}
inline void cluster_arrive_relaxed() { machine().cluster_arrive(); }
inline void cluster_wait() { machine().cluster_wait(); }
inline void sync_cluster() {
  cluster_arrive();
  cluster_wait();
}

// Only addresses that map_shared gave: another thread block's window would be missed otherwise.
inline uint32_t require_mapped(uint32_t address) {
  if (address < emulation::window(0)) machine().fail("expected a mapped address");
  return address;
}
inline bool barrier_passed_cluster(uint32_t barrier, uint32_t parity) {
  return machine().barrier(barrier).phase % 2 != parity;
}
inline void barrier_wait_cluster(uint32_t barrier, uint32_t parity) {
  while (!barrier_passed_cluster(barrier, parity)) machine().yield();
}
inline void fence_before_cluster_copies() { machine().fence_before_cluster_copies(); }
inline void barrier_arrive_mapped(uint32_t mapped) { machine().arrive(require_mapped(mapped)); }

template <typename T>
T load_mapped(uint32_t mapped) {
  T value;
  machine().require_published(require_mapped(mapped), sizeof(T));
  machine().accessed(mapped, sizeof(T));
  std::memcpy(&value, machine().shared(mapped, sizeof(T)), sizeof(T));
  return value;
}
inline Words4 load_mapped16(uint32_t mapped) { return load_mapped<Words4>(mapped); }
inline uint32_t load_mapped4(uint32_t mapped) { return load_mapped<uint32_t>(mapped); }
inline void store_mapped16(uint32_t mapped, Words4 value) {
  std::memcpy(machine().shared(require_mapped(mapped), 16), &value, 16);
  machine().wrote(mapped, 16);
}
inline void store_mapped4(uint32_t mapped, uint32_t value) {
  std::memcpy(machine().shared(require_mapped(mapped), 4), &value, 4);
  machine().wrote(mapped, 4);
}

inline void store_counted16(uint32_t mapped, Words4 value, uint32_t mapped_barrier) {
  emulation::Machine& m = machine();
  const uint32_t place = require_mapped(mapped);
  m.deliver(place, require_mapped(mapped_barrier),
            [place, value, &m] { std::memcpy(m.shared(place, 16), &value, 16); });
}

inline void copy_bulk_multicast(uint32_t target, const void* source, uint32_t bytes,
                                uint32_t barrier, uint16_t ranks, uint64_t policy) {
  if (ranks == 0 || ranks >> machine().cluster() != 0) {
    machine().fail("multicast: expected thread blocks of the cluster");
  }
  for (int rank = 0; rank < machine().cluster(); ++rank) {
    if (ranks >> rank & 1) {
      copy_bulk(map_shared(target, rank), source, bytes, map_shared(barrier, rank), policy);
    }
  }
}

}  // namespace secateur::device
