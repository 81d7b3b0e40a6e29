// secateur_sparse24_tiles: checks, then the instance for the value type.
#include <cuda_runtime.h>

#include "library/device_guard.h"
#include "secateur/core/sparse24_tiles.h"

namespace secateur::tiles {
// Defined in tiles_bf16.cu and tiles_fp16.cu.
int launch_bf16(const SecateurSparse24Tiles&, cudaStream_t);
int launch_fp16(const SecateurSparse24Tiles&, cudaStream_t);
}  // namespace secateur::tiles

int secateur_sparse24_tiles(const SecateurSparse24Tiles* a, void* stream) {
  if (const int error = secateur_sparse24_tiles_check(a)) return error;
  const secateur::DeviceGuard guard(a->linear.device);
  if (guard.error()) return guard.error();
  using namespace secateur::tiles;
  const auto launch = a->linear.value_type == SECATEUR_BF16 ? launch_bf16 : launch_fp16;
  return launch(*a, static_cast<cudaStream_t>(stream));
}
