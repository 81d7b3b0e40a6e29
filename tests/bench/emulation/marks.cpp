// What the tests ask of the marks, and the configurations that the timeline measures.
#include <algorithm>

#include "passed_points.h"
#include "timeline_cases.h"

int64_t passed[most_blocks][points];
int64_t marks_so_far = 0;

namespace {

// Whether a configuration needs more than the timeline's program has.
template <typename Arguments, typename Needs>
int wrong(const Arguments& a, const Needs& needs) {
  if (a.linear.tokens * a.linear.columns > micro::most_values ||
      a.linear.tokens * a.linear.rows > micro::most_values) {
    return SECATEUR_BAD_SHAPE;
  }
  if (a.blocks > micro::most_blocks) return SECATEUR_BAD_BLOCKS;
  if (needs.workspace_bytes > micro::workspace_bytes) return SECATEUR_SMALL_WORKSPACE;
  return needs.counter_count > micro::counter_count ? SECATEUR_FEW_COUNTERS : SECATEUR_OK;
}

}  // namespace

extern "C" {

const int64_t* marks_passed() { return passed[0]; }
void marks_clear() { std::fill_n(passed[0], most_blocks * points, 0); }

int timeline_skinny_cases() { return micro::skinny_case_count; }
// Bytes of shared memory that a case takes, or minus the error of what is wrong with it.
int64_t timeline_skinny_bytes(int i, int tokens) {
  int64_t bytes = 0;
  for (const micro::Moments moments : micro::skinny_cases[i].moments()) {
    const auto a = micro::arguments_of(micro::skinny_cases[i], tokens, moments);
    SecateurSparse24SkinnyNeeds needs;
    if (const int error = secateur_sparse24_skinny_needs(&a, &needs)) return -error;
    if (const int error = wrong(a, needs)) return -error;
    bytes = needs.shared_bytes;
  }
  return bytes;
}
int64_t timeline_wide_bytes(int i) {
  const auto a = micro::wide_arguments(micro::wide_moments[i]);
  SecateurSparse24WideNeeds needs;
  if (const int error = secateur_sparse24_wide_needs(&a, &needs)) return -error;
  if (const int error = wrong(a, needs)) return -error;
  return needs.shared_bytes;
}
}
