// secateur_sparse24_skinny: checks, then the instance for the value type.
#include <cuda_runtime.h>

#include "library/device_guard.h"
#include "sparse24_skinny/arguments.h"

namespace secateur::skinny {
// Defined in sparse24_skinny_bf16.cu and sparse24_skinny_fp16.cu.
int launch_bf16(const Problem&, int row_tiles, bool dependent, int device, cudaStream_t);
int launch_fp16(const Problem&, int row_tiles, bool dependent, int device, cudaStream_t);
}  // namespace secateur::skinny

int secateur_sparse24_skinny(const SecateurSparse24Skinny* a, void* stream) {
  if (const int error = secateur_sparse24_skinny_check(a)) return error;
  const secateur::DeviceGuard guard(a->linear.device);
  if (guard.error()) return guard.error();
  using namespace secateur::skinny;
  const auto launch = a->linear.value_type == SECATEUR_BF16 ? launch_bf16 : launch_fp16;
  return launch(problem_of(*a), a->row_tiles, a->linear.dependent != 0, a->linear.device,
                static_cast<cudaStream_t>(stream));
}
