// The skinny kernel on an emulated GPU, compiled with marks: when each thread block passes which
// point, counted in marks of all threads; and the configurations that the timeline measures.
#define SECATEUR_MARKED
#include "skinny.cpp"
#include "timeline_cases.h"

namespace {

constexpr int points = static_cast<int>(secateur::device::Point::count);
constexpr int most_blocks = 64;
int64_t passed[most_blocks][points];
int64_t now = 0;

int64_t& place(secateur::device::Point point) {
  return passed[secateur::device::block()][static_cast<int>(point)];
}

}  // namespace

namespace secateur::device {

inline void mark(Point point, bool when) {
  if (when && lane() == 0) place(point) = ++now;
}
inline void mark_first(Point point, bool when) {
  if (when && lane() == 0 && place(point) == 0) place(point) = ++now;
}

}  // namespace secateur::device

extern "C" {

// [thread block][point], zero where it is not passed.
const int64_t* marks_passed() { return passed[0]; }
void marks_clear() { std::fill_n(passed[0], most_blocks * points, 0); }

int timeline_case_count() { return micro::case_count; }
// Bytes of shared memory that a case takes, or minus the error of what is wrong with it.
int64_t timeline_case_bytes(int i, int tokens) {
  int64_t bytes = 0;
  for (const int lead : micro::cases[i].leads()) {
    SecateurSparse24SkinnyNeeds needs;
    const SecateurSparse24Skinny a = micro::arguments_of(micro::cases[i], tokens, lead);
    if (const int error = secateur_sparse24_skinny_needs(&a, &needs)) return -error;
    bytes = needs.shared_bytes;
  }
  return bytes;
}
}
