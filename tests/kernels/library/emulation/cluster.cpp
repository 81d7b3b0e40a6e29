// What thread blocks of a cluster do to each other, in kernels small enough to be judged by eye.
#include "emulated/run.h"
#include "secateur/device/cluster.h"

using namespace secateur;
using emulation::Machine;
using emulation::shared_base;

namespace {

constexpr uint32_t barrier = shared_base + 4096;

// Everyone sends its rank to the next thread block and adds what it got from all by remote loads.
void exchange(int size, uint32_t* out) {
  const int rank = device::cluster_rank(), lane = device::lane();
  const uint32_t mine = shared_base + 16 * lane;
  const uint32_t word = 100 * rank + lane;
  device::store_mapped16(device::map_shared(mine, (rank + 1) % size), {{word, word, word, word}});
  device::sync_cluster();
  uint32_t total = 0;
  for (int other = 0; other < size; ++other) {
    total += device::load_mapped16(device::map_shared(mine, other)).word[3];
  }
  device::store(out + warp_lanes * rank + lane, total);
  device::sync_cluster();
}

// Rank 0 fetches for all; each waits at its own barrier, and releases rank 0's by a remote arrival.
void multicast(int size, const uint8_t* source, uint32_t* out, bool wait) {
  const int rank = device::cluster_rank(), lane = device::lane();
  if (lane == 0) {
    device::barrier_init(barrier, 1);
    device::barrier_init(barrier + 8, size);
    device::barrier_init_fence();
  }
  device::sync_cluster();
  if (lane == 0) {
    device::barrier_arrive_expect(barrier, 256);
    if (rank == 0) {
      const auto ranks = static_cast<uint16_t>((1 << size) - 1);
      device::copy_bulk_multicast(shared_base, source, 256, barrier, ranks, 0);
    }
  }
  device::sync_warp();
  if (wait) device::barrier_wait_cluster(barrier, 0);
  device::store(out + warp_lanes * rank + lane, device::load_shared4(shared_base + 4 * lane));
  if (lane == 0) device::barrier_arrive_mapped(device::map_shared(barrier + 8, 0));
  if (rank == 0) device::barrier_wait_cluster(barrier + 8, 0);
  device::sync_cluster();
}

// Everyone hands its rank to the next thread block, `times` times in a row to the same place,
// counted at a barrier there, or at one of its own. `alone`: waits as for its own thread block.
void hand_over(int size, uint32_t* out, int times, bool counted_there, bool alone) {
  const int rank = device::cluster_rank(), next = (rank + 1) % size, lane = device::lane();
  if (lane == 0) {
    device::barrier_init(barrier, 1);
    device::barrier_arrive_expect(barrier, 16 * warp_lanes);
    device::barrier_init_fence();
  }
  device::sync_cluster();
  const uint32_t word = 100 * rank + lane, place = shared_base + 16 * lane;
  for (int i = 0; i < times; ++i) {
    device::store_counted16(device::map_shared(place, next), {{word, word, word, word}},
                            device::map_shared(barrier, counted_there ? next : rank));
  }
  if (alone) {
    device::barrier_wait(barrier, 0);
  } else {
    device::barrier_wait_cluster(barrier, 0);
  }
  device::store(out + warp_lanes * rank + lane, device::load_shared16(place).word[3]);
}

}  // namespace

// kind 0: exchange; 1: multicast; 2: multicast without waiting for the bytes; 3: counted stores; 4:
// counted at another thread block's barrier; 5: over what nobody has read; 6: waits as for its own.
extern "C" int emulate_cluster(int kind, int size, const uint8_t* source, uint32_t* out,
                               uint64_t seed) {
  return emulation::guarded([&] {
    Machine machine(warp_lanes, 8192, seed, size);
    machine.allow(source, 256, false);
    machine.allow(out, 4 * warp_lanes * size, true);
    machine.run(0, [&] {
      if (kind == 0) {
        exchange(size, out);
      } else if (kind <= 2) {
        multicast(size, source, out, kind == 1);
      } else {
        hand_over(size, out, kind == 5 ? 2 : 1, kind != 4, kind == 6);
      }
    });
  });
}
