// Marks of kernels on an emulated GPU: when each thread block passes which point, counted in marks
// of all threads.
#pragma once

#define SECATEUR_MARKED
#include "secateur/device/marks.h"

constexpr int points = static_cast<int>(secateur::device::Point::count);
constexpr int most_blocks = 64;
extern int64_t passed[most_blocks][points];  // zero where it is not passed
extern int64_t marks_so_far;

namespace secateur::device {

inline int64_t& passed_at(Point point) { return passed[block()][static_cast<int>(point)]; }

inline void mark(Point point, bool when) {
  if (when && lane() == 0) passed_at(point) = ++marks_so_far;
}
inline void mark_first(Point point, bool when) {
  if (when && lane() == 0 && passed_at(point) == 0) passed_at(point) = ++marks_so_far;
}

}  // namespace secateur::device
