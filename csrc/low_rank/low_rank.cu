// secateur_low_rank: checks, then the two kernels for the value type.
#include <cuda_runtime.h>

#include "library/device_guard.h"
#include "low_rank/arguments.h"

namespace secateur::low_rank {
// Defined in the files of these names, those of boxes in boxes_bf16 and boxes_fp16.
int down_bf16(const SecateurLowRank&, cudaStream_t);
int down_fp16(const SecateurLowRank&, cudaStream_t);
int up_bf16(const SecateurLowRank&, cudaStream_t);
int up_fp16(const SecateurLowRank&, cudaStream_t);
int sparse_up_bf16(const SecateurLowRank&, cudaStream_t);
int sparse_up_fp16(const SecateurLowRank&, cudaStream_t);
int box_down_bf16(const SecateurLowRank&, cudaStream_t);
int box_down_fp16(const SecateurLowRank&, cudaStream_t);
int box_up_bf16(const SecateurLowRank&, cudaStream_t);
int box_up_fp16(const SecateurLowRank&, cudaStream_t);

namespace {

int launch_first(const SecateurLowRank& a, bool bf16, cudaStream_t stream) {
  if (a.down_division.boxes) return (bf16 ? box_down_bf16 : box_down_fp16)(a, stream);
  return (bf16 ? down_bf16 : down_fp16)(a, stream);
}

int launch_second(const SecateurLowRank& a, bool bf16, cudaStream_t stream) {
  if (a.sparse != nullptr) return (bf16 ? sparse_up_bf16 : sparse_up_fp16)(a, stream);
  if (a.up_division.boxes) return (bf16 ? box_up_bf16 : box_up_fp16)(a, stream);
  return (bf16 ? up_bf16 : up_fp16)(a, stream);
}

}  // namespace
}  // namespace secateur::low_rank

int secateur_low_rank(const SecateurLowRank* a, void* stream) {
  if (const int error = secateur_low_rank_check(a)) return error;
  const secateur::DeviceGuard guard(a->linear.device);
  if (guard.error()) return guard.error();
  using namespace secateur::low_rank;
  if (a->down_division.boxes || a->up_division.boxes) {
    if (const int error = secateur::require_sm90(a->linear.device)) return error;
  }
  const auto queue = static_cast<cudaStream_t>(stream);
  const bool bf16 = a->linear.value_type == SECATEUR_BF16;
  if (const int error = launch_first(*a, bf16, queue)) return error;
  return launch_second(*a, bf16, queue);
}
