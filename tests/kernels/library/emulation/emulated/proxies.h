// Shared memory through two proxies. Bulk copies can overtake ordinary accesses to the same place,
// reads as well as writes, whatever barrier stands between, unless a fence does: of the thread that
// made the access, or of one that has been told of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace emulation {

// The ordinary accesses that no fence has covered yet, in chunks of 16 bytes, as copies move them.
class OrdinaryAccesses {
 public:
  OrdinaryAccesses(int blocks, int threads, int shared_bytes)
      : made_(blocks * threads),
        told_by_(blocks * threads),
        told_(blocks, std::vector<int>(shared_bytes / chunk + 1)),
        rounds_(blocks) {}

  void clear() {
    for (auto& accesses : made_) accesses.clear();
    for (auto& accesses : told_by_) accesses.clear();
    for (auto& chunks : told_) std::fill(chunks.begin(), chunks.end(), 0);
  }

  // `thread` is counted over the cluster; `block` is whose memory it is.
  void make(int thread, int block, int64_t offset, int bytes) {
    for (int64_t c = offset / chunk; c * chunk < offset + bytes; ++c) {
      made_[thread].push_back({block, c});
    }
  }
  // At a barrier. Who waits there is not looked at: others may fence in its stead.
  void tell(int thread) {
    std::vector<Told>& told = told_by_[thread];
    if (told.size() > most_told) {
      const auto old = [&](const Told& t) { return t.round != rounds_[t.access.block]; };
      told.erase(std::remove_if(told.begin(), told.end(), old), told.end());
    }
    for (const Access& a : made_[thread]) {
      ++told_[a.block][a.chunk];
      told.push_back({a, rounds_[a.block]});
    }
    made_[thread].clear();
  }
  // For the thread's own accesses, told or not, and those to the memory of its block that were told
  // of.
  void fence(int thread, int block) {
    made_[thread].clear();
    for (const Told& t : told_by_[thread]) {
      if (t.round == rounds_[t.access.block]) --told_[t.access.block][t.access.chunk];
    }
    told_by_[thread].clear();
    std::fill(told_[block].begin(), told_[block].end(), 0);
    ++rounds_[block];
  }
  bool any(int block, int64_t offset, int bytes) const {
    const int64_t first = offset / chunk, end = (offset + bytes + chunk - 1) / chunk;
    const auto told = told_[block].begin();
    if (std::any_of(told + first, told + end, [](int count) { return count > 0; })) return true;
    for (const auto& accesses : made_) {
      for (const Access& a : accesses) {
        if (a.block == block && first <= a.chunk && a.chunk < end) return true;
      }
    }
    return false;
  }

 private:
  static constexpr int chunk = 16;
  struct Access {
    int block;
    int64_t chunk;
  };

  // `round`: how often the block's memory had been fenced as a whole.
  struct Told {
    Access access;
    int round;
  };
  static constexpr size_t most_told = 4096;

  std::vector<std::vector<Access>> made_;  // of each thread, since its last barrier or fence
  std::vector<std::vector<Told>> told_by_;  // of each thread, since its last fence
  std::vector<std::vector<int>> told_;      // of each thread block's memory: how often
  std::vector<int> rounds_;
};

}  // namespace emulation
