// A warp that reads two words, the second of which the kernel in front may still write.
#include "emulated/run.h"
#include "secateur/device.h"

using namespace secateur;
using emulation::Machine;

namespace {

// `waiting` lanes wait for the kernel in front, and tell the others.
void read_behind(const uint32_t* source, uint32_t* out, int waiting) {
  const int lane = device::lane();
  const uint32_t weight = device::load<uint32_t>(source);
  if (lane < waiting) device::wait_for_predecessor();
  device::sync_warp();
  device::store(out + lane, weight + device::load<uint32_t>(source + 1));
}

}  // namespace

extern "C" int emulate_read_behind(const uint32_t* source, uint32_t* out, int waiting,
                                   uint64_t seed) {
  return emulation::guarded([&] {
    Machine machine(warp_lanes, 16, seed);
    machine.allow(source, 4, false, true);
    machine.allow(source + 1, 4, false);
    machine.allow(out, 4 * warp_lanes, true);
    machine.launch_dependent();
    machine.run(0, [&] { read_behind(source, out, waiting); });
  });
}
