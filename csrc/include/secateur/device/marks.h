// Points that a thread block passes on its way, for a program that looks where the time goes: it
// defines SECATEUR_MARKED and the functions. Anywhere else they are empty, and cost no instruction.
#pragma once

#include "secateur/device.h"

namespace secateur::device {

// In the order in which most thread blocks pass them.
enum class Point : int {
  started,            // the first instruction
  weights_asked,      // those that fill the ring are asked for
  successor_let,      // the next kernel may start, as far as this thread block is concerned
  predecessor_ended,  // and what it wrote can be read
  x_asked,            // x of the first stage is asked for
  first_full,         // the first stage is there
  last_asked,         // the last stage is asked for
  last_full,          // the last stage is there (wide: its products have begun)
  handed_over,        // sums are complete (skinny in a cluster: and handed over)
  summed,             // the sums of all are there
  left,               // the last instruction: y is written
  count
};

#if defined(SECATEUR_MARKED)
// For whole warps. Of several passes `mark` keeps the last and `mark_first` the first one.
SECATEUR_DEVICE void mark(Point point, bool when = true);
SECATEUR_DEVICE void mark_first(Point point, bool when = true);
#else
SECATEUR_DEVICE void mark(Point, bool = true) {}
SECATEUR_DEVICE void mark_first(Point, bool = true) {}
#endif

}  // namespace secateur::device

namespace secateur {

// With its mark.
SECATEUR_DEVICE void let_successor_start() {
  device::let_successor_start();
  device::mark(device::Point::successor_let);
}

}  // namespace secateur
