// The steps of a segment along the ring, for a warp that multiplies. What a step asks for are
// running values: made anew in each step, they were as many instructions as all the rest of it.
// One comparison tells where the ring or the segment ends.
#pragma once

#include "secateur/device.h"
#include "secateur/matrix_descriptor.h"
#include "secateur/wide/problem.h"

namespace secateur::wide {

template <typename Shape>
class RingWalk {
 public:
  // `steps`, at least one, from where the warp stands in the ring. By way of shuffles, so that the
  // compiler knows that the lanes have the same, and keeps it.
  SECATEUR_DEVICE RingWalk(const Ring<Shape>& ring, int steps)
      : stages_(ring.stages),
        full_(device::shuffle(ring.full(ring.stage), 0)),
        weights_(device::shuffle(ring.weights(), 0)),
        tokens_(device::shuffle(matrix_descriptor::lower_half(ring.x()), 0)),
        phase_(ring.phase),
        left_(steps) {
    plan(ring.stages - ring.stage);
  }

  // Of the step's stage: its full barrier, the phase to wait for there, its weights, and the lower
  // half of the descriptor of its tokens.
  SECATEUR_DEVICE uint32_t full() const { return full_; }
  SECATEUR_DEVICE uint32_t phase() const { return phase_; }
  SECATEUR_DEVICE uint32_t weights() const { return weights_; }
  SECATEUR_DEVICE uint32_t tokens() const { return tokens_; }

  // Goes on to the next step; false if there is none.
  SECATEUR_DEVICE bool next() {
    pass(1);
    if (full_ != stop_) return true;
    if (left_ == 0) return false;
    pass(-stages_);
    phase_ ^= 1;
    plan(stages_);
    return true;
  }

  // Behind the last step: lets `ring` stand where the next segment begins.
  SECATEUR_DEVICE void leave(Ring<Shape>& ring) const {
    ring.stage = static_cast<int>((full_ - ring.full(0)) / stage_barriers_bytes);
    ring.phase = phase_;
    if (ring.stage == stages_) {
      ring.stage = 0;
      ring.phase ^= 1;
    }
  }

 private:
  SECATEUR_DEVICE void pass(int stages) {
    full_ += stages * stage_barriers_bytes;
    weights_ += stages * Shape::weight_bytes;
    tokens_ += stages * static_cast<int>(matrix_descriptor::units(Shape::x_bytes));
  }
  // Stops after as many steps as the ring has `room` for up to its end.
  SECATEUR_DEVICE void plan(int room) {
    const int steps = left_ < room ? left_ : room;
    left_ -= steps;
    stop_ = full_ + steps * stage_barriers_bytes;
  }

  const int& stages_;
  uint32_t full_;
  uint32_t weights_;
  uint32_t tokens_;
  uint32_t phase_;
  int left_;       // steps behind the stop
  uint32_t stop_;  // full() where the ring or the segment ends
};

}  // namespace secateur::wide
