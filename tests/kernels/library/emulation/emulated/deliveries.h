// What counted stores have brought to places in shared memory, and nobody has read so far. A
// barrier that counts them says nothing of the reader: whoever stores there again must know
// otherwise that it was read.
#pragma once

#include <cstdint>
#include <set>

namespace emulation {

class Deliveries {
 public:
  void clear() { unread_.clear(); }

  // False where what was brought before has not been read.
  bool bring(uint32_t place) { return unread_.insert(place).second; }

  void read(uint32_t start, int bytes) {
    if (unread_.empty()) return;
    unread_.erase(unread_.lower_bound(start), unread_.lower_bound(start + bytes));
  }

 private:
  std::set<uint32_t> unread_;
};

}  // namespace emulation
