// What threads of a cluster have written to shared memory, and other thread blocks do not see yet:
// it has to be published first, by an arrival that releases.
#pragma once

#include <cstdint>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

namespace emulation {

class Unpublished {
 public:
  // `threads` of the whole cluster.
  explicit Unpublished(int threads) : places_(threads) {}

  void clear() {
    writes_.clear();
    for (auto& places : places_) places.clear();
  }

  // What was there before is gone, whoever wrote it.
  void write(int thread, uint32_t start, int bytes) {
    for (auto at = first(start); at != writes_.end() && at->first < start + bytes;) {
      at = writes_.erase(at);
    }
    writes_[start] = {bytes, thread};
    places_[thread].push_back(start);
  }

  // What `thread` wrote from `start` on and before `end`.
  void publish(int thread, uint32_t start, uint32_t end) {
    std::vector<uint32_t> kept;
    for (const uint32_t place : places_[thread]) {
      const auto found = writes_.find(place);
      if (found == writes_.end() || found->second.thread != thread) continue;
      if (start <= place && place < end) {
        writes_.erase(found);
      } else {
        kept.push_back(place);
      }
    }
    places_[thread] = std::move(kept);
  }

  bool any(uint32_t start, int bytes) const {
    const auto at = first(start);
    return at != writes_.end() && at->first < start + bytes;
  }

 private:
  struct Write {
    int bytes;
    int thread;
  };
  using Writes = std::map<uint32_t, Write>;  // by where they start; none overlaps another

  // The first that ends behind `start`.
  Writes::const_iterator first(uint32_t start) const {
    auto at = writes_.lower_bound(start);
    if (at == writes_.begin()) return at;
    const auto before = std::prev(at);
    return before->first + before->second.bytes > start ? before : at;
  }

  Writes writes_;
  std::vector<std::vector<uint32_t>> places_;  // of each thread, some of them gone
};

}  // namespace emulation
