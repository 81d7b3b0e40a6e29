// Thread blocks of one warp leave sums, and the last of them reads those of all.
#include "emulated/run.h"
#include "secateur/device.h"

using namespace secateur;
using emulation::Machine;

namespace {

// Slots of four floats a lane. `meets`: the warp meets before one lane takes the ticket.
void add_up(float* slots, uint32_t* counter, float* out, int blocks, bool meets) {
  const int lane = device::lane();
  const float mine = 1.0f + device::block();
  const auto slot = [&](int block) { return slots + 4 * (warp_lanes * block + lane); };
  device::store_partial(slot(device::block()), {mine, mine, mine, mine});
  if (meets) device::sync_warp();
  uint32_t before = 0;
  if (lane == 0) before = device::take_ordered_ticket(counter);
  if (device::shuffle(before, 0) + 1 != static_cast<uint32_t>(blocks)) return;
  float sum[4] = {};
  for (int block = 0; block < blocks; ++block) device::add_partial(sum, slot(block));
  device::store(out + lane, sum[0]);
}

}  // namespace

extern "C" int emulate_add_up(float* slots, uint32_t* counter, float* out, int blocks, int meets,
                              uint64_t seed) {
  return emulation::guarded([&] {
    Machine machine(warp_lanes, 16, seed, blocks, true);
    machine.allow(slots, 16 * warp_lanes * blocks, true);
    machine.allow(counter, 4, true);
    machine.allow(out, 4 * warp_lanes, true);
    machine.run(0, [&] { add_up(slots, counter, out, blocks, meets != 0); });
  });
}
