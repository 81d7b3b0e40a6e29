// secateur_low_rank: checks, then the two kernels for the value type.
#include <cuda_runtime.h>

#include "library/device_guard.h"
#include "low_rank/arguments.h"

namespace secateur::low_rank {
// Defined in the files of these names.
int down_bf16(const SecateurLowRank&, cudaStream_t);
int down_fp16(const SecateurLowRank&, cudaStream_t);
int up_bf16(const SecateurLowRank&, cudaStream_t);
int up_fp16(const SecateurLowRank&, cudaStream_t);
int sparse_up_bf16(const SecateurLowRank&, cudaStream_t);
int sparse_up_fp16(const SecateurLowRank&, cudaStream_t);
}  // namespace secateur::low_rank

int secateur_low_rank(const SecateurLowRank* a, void* stream) {
  if (const int error = secateur_low_rank_check(a)) return error;
  const secateur::DeviceGuard guard(a->linear.device);
  if (guard.error()) return guard.error();
  using namespace secateur::low_rank;
  const auto queue = static_cast<cudaStream_t>(stream);
  const bool bf16 = a->linear.value_type == SECATEUR_BF16;
  if (const int error = (bf16 ? down_bf16 : down_fp16)(*a, queue)) return error;
  if (a->sparse != nullptr) return (bf16 ? sparse_up_bf16 : sparse_up_fp16)(*a, queue);
  return (bf16 ? up_bf16 : up_fp16)(*a, queue);
}
