// Sums on their way to the L2 cache. Other thread blocks find them there some time later, or once
// an ordered ticket has been taken: by the thread that left them, or by one of its warp that it has
// met since.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace emulation {

class PartialSums {
 public:
  explicit PartialSums(int threads) : left_(threads) {}

  void leave(int thread, float* target, const float (&v)[4]) {
    left_[thread].push_back({target, {v[0], v[1], v[2], v[3]}, false});
  }
  // At a barrier, or where a warp meets.
  void tell(int thread) {
    for (Left& sums : left_[thread]) sums.told = true;
  }
  // By a thread of the warp [first, end).
  void order(int thread, int first, int end) {
    for (int i = first; i < end; ++i) {
      land(left_[i], [&](const Left& sums) { return i == thread || sums.told; });
    }
  }
  template <typename Random>
  void land_some(Random& random) {
    for (auto& sums : left_) {
      if (!sums.empty()) land(sums, [&](const Left&) { return random() % 8 == 0; });
    }
  }
  void land_all() {
    for (auto& sums : left_) land(sums, [](const Left&) { return true; });
  }

 private:
  struct Left {
    float* target;
    float values[4];
    bool told;
  };

  template <typename Chosen>
  static void land(std::vector<Left>& all, const Chosen& chosen) {
    std::vector<Left> kept;
    for (const Left& sums : all) {
      if (chosen(sums)) {
        std::memcpy(sums.target, sums.values, sizeof(sums.values));
      } else {
        kept.push_back(sums);
      }
    }
    all = std::move(kept);
  }

  std::vector<std::vector<Left>> left_;  // of each thread
};

}  // namespace emulation
