// secateur_sparse24_wide: checks, the map of x, then the instance for the value type.
#include <cuda_runtime.h>

#include "library/device_guard.h"
#include "library/tensor_map.h"
#include "sparse24_wide/arguments.h"

namespace secateur::wide {
// Defined in sparse24_wide/wide_bf16.cu and wide_fp16.cu.
int launch_bf16(const SecateurSparse24Wide&, const Problem&, cudaStream_t);
int launch_fp16(const SecateurSparse24Wide&, const Problem&, cudaStream_t);
}  // namespace secateur::wide

int secateur_sparse24_wide(const SecateurSparse24Wide* a, void* stream) {
  if (const int error = secateur_sparse24_wide_check(a)) return error;
  const secateur::DeviceGuard guard(a->linear.device);
  if (guard.error()) return guard.error();
  using namespace secateur::wide;
  if (const int error = secateur::require_sm90(a->linear.device)) return error;
  Problem problem = problem_of(*a);
  if (const int error = secateur::map_x(a->linear, box_tokens(*a), &problem.x)) return error;
  const auto launch = a->linear.value_type == SECATEUR_BF16 ? launch_bf16 : launch_fp16;
  return launch(*a, problem, static_cast<cudaStream_t>(stream));
}
