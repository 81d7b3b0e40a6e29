// What the kernels for a packed 2:4 weight ask of their arguments alike; no CUDA in here.
#pragma once

#include "library/linear_arguments.h"

namespace secateur {

template <typename Arguments>
int check_packed24_pointers(const Arguments& a) {
  if (a.weight == nullptr) return SECATEUR_NULL_POINTER;
  if (const int error = check_pointers(a.linear)) return error;
  const bool fits = aligned(a.weight, 16) && aligned(a.workspace, 16) && aligned(a.counters, 4);
  return fits ? SECATEUR_OK : SECATEUR_MISALIGNED;
}

// Whether there is as much workspace and as many counters as the configuration needs.
template <typename Arguments, typename Needs>
int check_scratch(const Arguments& a, const Needs& needs) {
  if (a.workspace_bytes < needs.workspace_bytes ||
      (needs.workspace_bytes > 0 && a.workspace == nullptr)) {
    return SECATEUR_SMALL_WORKSPACE;
  }
  if (a.counter_count < needs.counter_count ||
      (needs.counter_count > 0 && a.counters == nullptr)) {
    return SECATEUR_FEW_COUNTERS;
  }
  return SECATEUR_OK;
}

}  // namespace secateur
