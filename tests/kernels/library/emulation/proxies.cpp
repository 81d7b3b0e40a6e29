// A place in shared memory that threads read or write and that a bulk copy fills again.
#include "emulated/run.h"
#include "secateur/device.h"

using namespace secateur;
using emulation::Machine;
using emulation::shared_base;

namespace {

enum class Fence { none, accessor, copier };

constexpr uint32_t barrier = shared_base + 1024;  // counts the lanes that are done

// Lanes of warp 1 access the place, one of warp 0 copies over it: `fence` says who fences.
void reuse(const uint8_t* source, bool writes, Fence fence) {
  const int warp = device::thread() / warp_lanes, lane = device::lane();
  const uint32_t mine = shared_base + 16 * lane;
  if (device::thread() == 0) {
    device::barrier_init(barrier, 1);
    device::barrier_init(barrier + 8, warp_lanes);
    device::barrier_init_fence();
  }
  device::sync_block();
  if (warp == 1) {
    if (writes) {
      device::store_shared4(mine, lane);
    } else {
      device::load_shared4(mine);
    }
    if (fence == Fence::accessor) device::fence_before_copies();
    device::barrier_arrive(barrier + 8);
    return;
  }
  device::barrier_wait(barrier + 8, 0);
  if (lane == 0) {
    if (fence == Fence::copier) device::fence_before_copies();
    device::barrier_arrive_expect(barrier, 512);
    device::copy_bulk(shared_base, source, 512, barrier, 0);
  }
  device::sync_warp();
  device::barrier_wait(barrier, 0);
}

}  // namespace

// `source`: 512 bytes. fence 0: nobody; 1: those who accessed the place; 2: the one who copies.
extern "C" int emulate_reuse(const uint8_t* source, int writes, int fence, uint64_t seed) {
  return emulation::guarded([&] {
    Machine machine(2 * warp_lanes, 1040, seed);
    machine.allow(source, 512, false);
    machine.run(0, [&] { reuse(source, writes != 0, static_cast<Fence>(fence)); });
  });
}
