// unpack24's own source, run on emulated warps behind the C interface's checks.
#include "emulated/run.h"
#include "secateur/core/unpack24.h"
#include "secateur/unpack24.h"

using namespace secateur;
using emulation::Machine;

extern "C" int emulate_unpack24(const SecateurUnpack24* a) {
  if (const int error = secateur_unpack24_check(a)) return error;
  const unpack24::Problem problem{static_cast<const uint8_t*>(a->weight),
                                  static_cast<uint16_t*>(a->dense), static_cast<int>(a->rows),
                                  static_cast<int>(a->columns), a->gate_up != 0};
  return emulation::guarded([&] {
    for (int64_t tile = 0; tile < unpack24::tiles(problem); ++tile) {
      Machine machine(warp_lanes, 16, 0);
      emulation::allow_packed24(a->weight, a->rows, a->columns, machine);
      machine.allow(a->dense, 2 * a->rows * a->columns, true);
      machine.run(0, [&] { unpack24::unpack_tile(problem, tile, device::lane()); });
    }
  });
}
