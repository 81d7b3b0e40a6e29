// The wide kernel for bf16 weights.
#include "sparse24_wide/launch.h"

namespace secateur::wide {

int launch_bf16(const SecateurSparse24Wide& arguments, const Problem& problem,
                cudaStream_t stream) {
  return launch<Bf16>(arguments, problem, stream);
}

}  // namespace secateur::wide
