// Thread blocks on a CPU that run at the same time: most often one, or a cluster, or some that share
// global memory only. Every thread is a coroutine, and one schedule of many, drawn from a seed,
// decides who goes on and when copies land. It reports what a GPU would not: deadlocks, lanes that
// diverge within a warp, accesses outside of what was given or before the kernel in front has ended,
// copies nobody waited for.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <typeindex>
#include <unordered_map>
#include <vector>

#include "emulated/deliveries.h"
#include "emulated/partial_sums.h"
#include "emulated/proxies.h"
#include "emulated/unpublished.h"

namespace emulation {

constexpr int lanes = 32;
constexpr uint8_t poison = 0xFF;  // NaN as a value, illegal as metadata
// Where a thread block sees its own shared memory, and where it is in the cluster's window.
constexpr uint32_t shared_base = 1 << 20;
constexpr uint32_t window(int rank) { return shared_base + ((rank + 1) << 24); }

struct Barrier {
  int count = 0;
  int pending = 0;
  int64_t bytes = 0;  // expected and not yet there
  uint32_t phase = 0;
  bool of_cluster = false;  // other thread blocks arrive or count at it

  void complete_if_due() {
    if (pending == 0 && bytes == 0) {
      ++phase;
      pending = count;
    }
  }
};

// A copy under way, or the arrival that follows a thread's copies. Addresses are in the cluster's
// window.
struct Landing {
  uint32_t target = 0;
  const uint8_t* source = nullptr;
  int bytes = 0;    // to write
  int valid = 0;    // of them from the source, the rest zero
  uint32_t barrier = 0;
  int64_t counted = 0;  // bytes that the barrier expects
  bool arrives = false;
  std::function<void()> write;  // in place of target, source and bytes
};

// Something that works beside the threads, such as tensor cores.
class Unit {
 public:
  virtual ~Unit() = default;
  virtual bool advance(uint64_t random) = 0;  // whether anything was done
  virtual bool idle() const = 0;
};

struct Collective {
  std::string name;
  int arrived = 0;
  int generation = 0;
  uint64_t in[lanes][8];
  uint64_t out[lanes][8];
};

class Machine {
 public:
  // `threads` and `shared_bytes` are a thread block's. Several are a cluster, unless they are `apart`.
  Machine(int threads, int shared_bytes, uint64_t seed, int blocks = 1, bool apart = false)
      : random_(seed),
        threads_(threads),
        blocks_(blocks),
        apart_(apart),
        shared_(blocks, std::vector<uint8_t>(shared_bytes, poison)),
        ordinary_(blocks, threads, shared_bytes),
        partial_sums_(blocks * threads),
        unpublished_(blocks * threads) {}

  static Machine*& current() {
    static Machine* machine = nullptr;
    return machine;
  }

  // `early`: may be read before the kernel in front has ended.
  void allow(const void* start, int64_t bytes, bool writable, bool early = false) {
    if (start != nullptr && bytes > 0) {
      regions_.push_back({reinterpret_cast<uintptr_t>(start), bytes, writable, early});
    }
  }

  // Launched as a dependent: the kernel in front ends some time after the first thread waits for it.
  void launch_dependent() { dependent_ = true; }

  // Runs the thread blocks; `block` is the first of them.
  void run(int block, const std::function<void()>& body);

  // ---- for the emulated instructions ----
  int running() const { return running_; }  // the thread, counted over the cluster
  int threads() const { return threads_; }  // of a thread block
  int thread() const { return running_ % threads_; }
  int rank() const { return running_ / threads_; }
  int cluster() const { return apart_ ? 1 : blocks_; }
  int cluster_rank() const { return apart_ ? 0 : rank(); }
  int block() const { return block_ + rank(); }
  void yield() {
    if (_setjmp(fibers_[running_].place) == 0) _longjmp(scheduler_, 1);
  }
  void fail(const std::string& message) {
    if (running_ < 0) throw std::runtime_error(message + ", outside of any thread");
    if (error_.empty()) error_ = message + ", thread " + std::to_string(running_);
    while (true) yield();
  }
  void advance() { progress_ = true; }

  // The same bytes as the thread block `rank` of the cluster sees them, for any thread of it.
  uint32_t map_shared(uint32_t address, int rank) {
    if (address < shared_base || address >= window(0)) fail("mapa: not an address of its own block");
    if (rank < 0 || rank >= cluster()) fail("mapa: no such thread block in the cluster");
    return address - shared_base + window(apart_ ? this->rank() : rank);
  }
  // An address of its own thread block as one of the cluster's window.
  uint32_t in_window(uint32_t address) {
    return address < window(0) && running_ >= 0 ? address - shared_base + window(rank()) : address;
  }

  // Whose window a mapped address is in.
  uint32_t owner(uint32_t mapped) const { return (mapped - window(0)) >> 24; }

  uint8_t* shared(uint32_t address, int bytes) {
    const uint32_t mapped = in_window(address);
    const int64_t place = static_cast<int64_t>(mapped) - window(0);
    const int64_t owner = place >> 24, offset = place & ((1 << 24) - 1);
    if (place < 0 || owner >= blocks_ ||
        offset + bytes > static_cast<int64_t>(shared_[owner].size())) {
      fail("shared memory: access outside at " + std::to_string(offset));
    }
    if (mapped % bytes != 0) fail("shared memory: misaligned access");
    if (exited_[owner] == threads_) fail("shared memory of a thread block that has left");
    return shared_[owner].data() + offset;
  }

  // What a thread of a cluster has written to shared memory is seen by the other thread blocks only
  // after it was published, by an arrival that releases: all of it, or that in its own block.
  void wrote(uint32_t address, int bytes) {
    spare_barriers(in_window(address), bytes);
    accessed(address, bytes);
    if (cluster() == 1) return;
    unpublished_.write(running_, in_window(address), bytes);
  }
  void accessed(uint32_t address, int bytes) {
    const uint32_t place = in_window(address) - window(0);
    ordinary_.make(running_, place >> 24, place & ((1 << 24) - 1), bytes);
    deliveries_.read(in_window(address), bytes);
  }
  void fence_before_copies() { ordinary_.fence(running_, rank()); }
  void fence_before_cluster_copies() {
    for (int block = 0; block < blocks_; ++block) ordinary_.fence(running_, block);
  }
  void require_fenced(uint32_t mapped, int bytes) {
    const uint32_t place = mapped - window(0);
    if (ordinary_.any(place >> 24, place & ((1 << 24) - 1), bytes)) {
      fail("shared memory: a bulk copy over ordinary accesses, without a fence between");
    }
  }
  void publish(bool everything) {
    unpublished_.publish(running_, everything ? 0 : window(rank()),
                         everything ? UINT32_MAX : window(rank() + 1));
  }
  void require_published(uint32_t mapped, int bytes) {
    if (mapped >= window(rank()) && mapped < window(rank() + 1)) return;
    if (unpublished_.any(mapped, bytes)) {
      fail("shared memory: read by another thread block before it was published");
    }
  }

  template <typename T>
  T* global(const void* address, bool write) {
    check_global(address, sizeof(T), write);
    if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) fail("global: misaligned access");
    return static_cast<T*>(const_cast<void*>(address));
  }

  void check_global(const void* address, int64_t bytes, bool write) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    for (const Region& region : regions_) {
      if (at >= region.start && at + bytes <= region.start + region.bytes &&
          (region.writable || !write)) {
        if (dependent_ && !passed_[running_] && (write || !region.early)) {
          fail("global: access before the kernel in front has ended");
        }
        return;
      }
    }
    fail(write ? "global: write outside of what was given"
               : "global: read outside of what was given");
  }

  // Into the L2 cache: what may be read already, and is going to be copied, as often as it is asked
  // for.
  void prefetch(const void* source, int64_t bytes) {
    check_global(source, bytes, false);
    for (int64_t at = 0; at < bytes; at += 16) {
      ++prefetched_[static_cast<const uint8_t*>(source) + at];
    }
    prefetched_bytes() += bytes;
  }
  void copied(const void* source, int64_t bytes) {
    if (prefetched_.empty()) return;
    for (int64_t at = 0; at < bytes; at += 16) {
      const auto found = prefetched_.find(static_cast<const uint8_t*>(source) + at);
      if (found != prefetched_.end() && --found->second == 0) prefetched_.erase(found);
    }
  }
  // Of all machines.
  static int64_t& prefetched_bytes() {
    static int64_t bytes = 0;
    return bytes;
  }

  Barrier& barrier(uint32_t address) {
    shared(address, 8);
    const auto found = barriers_.find(in_window(address));
    if (found == barriers_.end()) fail("an mbarrier that was not initialised");
    return found->second;
  }
  void init_barrier(uint32_t address, int count) {
    shared(address, 8);
    barriers_[in_window(address)] = {count, count, 0, 0, false};
  }
  void arrive(uint32_t address) {
    if (running_ >= 0) tell();
    Barrier& b = barrier(address);
    comes_from_here(b, address);
    if (b.pending == 0) fail("more arrivals than an mbarrier counts");
    --b.pending;
    b.complete_if_due();
    advance();
  }

  void start_copy(Landing landing, bool bulk) {
    if (landing.valid > 0) check_global(landing.source, landing.valid, false);
    copied(landing.source, landing.valid);
    shared(landing.target, 16);
    shared(landing.target + landing.bytes - 16, 16);
    landing.target = in_window(landing.target);
    if (landing.barrier != 0) landing.barrier = in_window(landing.barrier);
    if (landing.barrier != 0) comes_from_here(barrier(landing.barrier), landing.barrier);
    spare_barriers(landing.target, landing.bytes);
    if (bulk) require_fenced(landing.target, landing.bytes);
    std::memset(shared(landing.target, 1), poison, landing.bytes);
    (bulk ? bulk_ : queues_[running_]).push_back(landing);
  }
  // With a `write` of its own.
  void start_bulk(Landing landing) {
    landing.barrier = in_window(landing.barrier);
    comes_from_here(barrier(landing.barrier), landing.barrier);
    bulk_.push_back(landing);
  }
  // A counted store of 16 bytes, both addresses mapped, which lands some time later.
  void deliver(uint32_t target, uint32_t barrier, const std::function<void()>& write) {
    if (cluster() == 1) fail("a counted store outside of a cluster");
    if (owner(target) != owner(barrier)) {
      fail("a counted store and its barrier in different thread blocks");
    }
    shared(target, 16);
    spare_barriers(target, 16);
    if (!deliveries_.bring(target)) fail("a counted store over one that nobody has read");
    Landing landing;
    landing.barrier = barrier;
    landing.counted = 16;
    landing.write = write;
    start_bulk(landing);
  }
  void arrive_after_copies(uint32_t barrier) {
    Landing landing;
    landing.barrier = in_window(barrier);
    landing.arrives = true;
    queues_[running_].push_back(landing);
  }
  void wait_for_copies() {
    while (!queues_[running_].empty()) yield();
  }

  // All lanes of a warp bring `in`; the last one computes all of `out`.
  template <typename In, typename Out, typename Compute>
  Out collective(const char* name, const In& in, const Compute& compute) {
    static_assert(sizeof(In) <= 64 && sizeof(Out) <= 64, "slots");
    tell();
    Collective& c = collectives_[running_ / lanes];
    const int lane = thread() % lanes;
    if (c.arrived == 0) {
      c.name = name;
    } else if (c.name != name) {
      fail("lanes of a warp diverge: " + c.name + " and " + name);
    }
    std::memcpy(c.in[lane], &in, sizeof(In));
    const int generation = c.generation;
    if (++c.arrived == lanes) {
      In all[lanes];
      Out results[lanes];
      for (int i = 0; i < lanes; ++i) std::memcpy(&all[i], c.in[i], sizeof(In));
      compute(all, results);
      for (int i = 0; i < lanes; ++i) std::memcpy(c.out[i], &results[i], sizeof(Out));
      c.arrived = 0;
      ++c.generation;
      advance();
    } else {
      while (c.generation == generation) yield();
    }
    Out out;
    std::memcpy(&out, c.out[lane], sizeof(Out));
    return out;
  }

  // Registers are read or written by other instructions than asynchronous ones; a fence between
  // those and the asynchronous ones.
  void touch_registers() { touched_[running_] = true; }
  void fence_registers() { touched_[running_] = false; }
  bool registers_touched() const { return touched_[running_]; }

  template <typename T>
  T& unit() {
    std::unique_ptr<Unit>& found = units_[std::type_index(typeid(T))];
    if (found == nullptr) found = std::make_unique<T>(*this);
    return static_cast<T&>(*found);
  }

  void sync_block() {
    tell();
    wait(block_syncs_[rank()], arrive(block_syncs_[rank()], threads_));
  }

  // The two halves of a barrier over the whole cluster.
  void cluster_arrive() {
    if (apart_) fail("a barrier over a cluster that is none");
    if (cluster_tokens_[running_] >= 0) fail("two arrivals at a cluster's barrier without a wait");
    tell();
    cluster_tokens_[running_] = arrive(cluster_sync_, blocks_ * threads_);
  }
  void cluster_wait() {
    if (cluster_tokens_[running_] < 0) fail("a wait at a cluster's barrier without an arrival");
    wait(cluster_sync_, cluster_tokens_[running_]);
    cluster_tokens_[running_] = -1;
  }

  // Sums that other thread blocks are to find, and the ticket that orders them.
  void leave_sums(float* target, const float (&v)[4]) {
    check_global(target, 16, true);
    partial_sums_.leave(running_, target, v);
  }
  void order_sums() {
    const int first = running_ / lanes * lanes;
    partial_sums_.order(running_, first, first + lanes);
  }

  void wait_for_predecessor() {
    waited_[rank()] = true;
    while (!predecessor_ended_) yield();
    passed_[running_] = true;
  }

 private:
  struct Region {
    uintptr_t start;
    int64_t bytes;
    bool writable;
    bool early;
  };
  struct Sync {
    int arrived = 0;
    int generation = 0;
  };
  struct Fiber {
    jmp_buf place;  // where it goes on, once begun
    bool begun = false;
    bool done = false;
  };

  static constexpr size_t stack_bytes = 64 * 1024;

  // Kept from launch to launch: fresh pages would cost more than what runs on them.
  static char* stack(int fiber) {
    static std::vector<std::unique_ptr<char[]>> stacks;
    while (stacks.size() <= static_cast<size_t>(fiber)) stacks.emplace_back(new char[stack_bytes]);
    return stacks[fiber].get();
  }

  // Lets a thread run until it yields. A context only begins it: each swap is a system call.
  void resume(int running) {
    running_ = running;
    Fiber& fiber = fibers_[running];
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack(running);
    context.uc_stack.ss_size = stack_bytes;
    context.uc_link = nullptr;
    makecontext(&context, reinterpret_cast<void (*)()>(&Machine::enter), 0);
    setcontext(&context);
  }

  static void enter() {
    Machine& m = *current();
    (*m.body_)();
    if (!m.queues_[m.running_].empty()) m.fail("a thread left with copies under way");
    m.fibers_[m.running_].done = true;
    ++m.exited_[m.rank()];
    m.advance();
    while (true) m.yield();
  }

  // Where others learn what the thread has done so far.
  void tell() {
    ordinary_.tell(running_);
    partial_sums_.tell(running_);
  }

  void comes_from_here(Barrier& b, uint32_t address) const {
    if (running_ < 0) return;
    const uint32_t mapped = address < window(0) ? window(rank()) : address;
    if (owner(mapped) != static_cast<uint32_t>(rank())) b.of_cluster = true;
  }

  // Memory of an mbarrier is nothing else.
  void spare_barriers(uint32_t start, int bytes) {
    const auto next = barriers_.lower_bound(start);
    const bool hit = next != barriers_.end() && next->first < start + bytes;
    const bool cut = next != barriers_.begin() && std::prev(next)->first + 8 > start;
    if (hit || cut) fail("shared memory: an mbarrier is overwritten");
  }

  // For some rounds a warp or a thread block does not run, or nobody sleeps: what only holds while
  // all go on at about the same pace is found out.
  void fall_asleep() {
    const int warps = threads_ / lanes, all = blocks_ * warps;
    const uint64_t kind = random_() % 4;
    first_asleep_ = awake_ = 0;
    if (kind == 0) first_asleep_ = random_() % all, awake_ = first_asleep_ + 1;
    if (kind == 1 && blocks_ > 1) {
      first_asleep_ = random_() % blocks_ * warps, awake_ = first_asleep_ + warps;
    }
  }
  bool asleep(int warp) const { return first_asleep_ <= warp && warp < awake_; }

  int arrive(Sync& sync, int threads) {
    const int generation = sync.generation;
    if (++sync.arrived == threads) {
      sync.arrived = 0;
      ++sync.generation;
    }
    advance();
    return generation;
  }
  void wait(const Sync& sync, int generation) {
    while (sync.generation == generation) yield();
  }

  // Some of what is under way lands: of each thread in order, across threads in any order, and bulk
  // copies in any order.
  void land(std::deque<Landing>& queue, bool in_order) {
    while (!queue.empty() && random_() % 3 != 0) {
      if (!in_order) std::swap(queue.front(), queue[random_() % queue.size()]);
      const Landing landing = queue.front();
      queue.pop_front();
      if (landing.arrives) {
        arrive(landing.barrier);
        continue;
      }
      if (landing.write) {
        landing.write();
      } else {
        uint8_t* target = shared(landing.target, 1);
        std::memset(target, 0, landing.bytes);
        if (landing.valid > 0) std::memcpy(target, landing.source, landing.valid);
      }
      if (landing.counted > 0) {
        Barrier& b = barrier(landing.barrier);
        b.bytes -= landing.counted;
        b.complete_if_due();
      }
      advance();
    }
  }

  std::mt19937_64 random_;
  int threads_;
  int blocks_;
  bool apart_;
  std::vector<std::vector<uint8_t>> shared_;  // a thread block each
  OrdinaryAccesses ordinary_;
  Deliveries deliveries_;
  PartialSums partial_sums_;
  std::vector<Region> regions_;
  std::vector<Fiber> fibers_;
  std::vector<Collective> collectives_;
  std::vector<std::deque<Landing>> queues_;
  std::deque<Landing> bulk_;
  std::map<uint32_t, Barrier> barriers_;
  jmp_buf scheduler_;
  const std::function<void()>* body_ = nullptr;
  int running_ = 0;
  int block_ = 0;
  std::vector<Sync> block_syncs_;
  Sync cluster_sync_;
  std::vector<int> cluster_tokens_;  // of each thread between arrival and wait, else -1
  Unpublished unpublished_;
  std::vector<int> exited_;  // threads of each thread block
  std::vector<bool> touched_;  // registers of each thread since its last fence
  std::map<std::type_index, std::unique_ptr<Unit>> units_;
  std::unordered_map<const uint8_t*, int> prefetched_;  // 16 bytes each, and not copied since
  std::vector<bool> waited_;  // for the kernel in front, a thread of each thread block
  std::vector<bool> passed_;  // each thread: it has seen that it ended
  bool dependent_ = false;
  bool predecessor_ended_ = true;
  int first_asleep_ = 0;  // warps [first_asleep_, awake_)
  int awake_ = 0;
  bool progress_ = false;
  std::string error_;
};

inline void Machine::run(int block, const std::function<void()>& body) {
  current() = this;
  block_ = block;
  body_ = &body;
  barriers_.clear();
  for (auto& memory : shared_) std::fill(memory.begin(), memory.end(), poison);
  ordinary_.clear();
  deliveries_.clear();
  const int threads = blocks_ * threads_;
  fibers_ = std::vector<Fiber>(threads);
  collectives_ = std::vector<Collective>(threads / lanes);
  queues_ = std::vector<std::deque<Landing>>(threads);
  block_syncs_ = std::vector<Sync>(blocks_);
  cluster_sync_ = {};
  cluster_tokens_ = std::vector<int>(threads, -1);
  unpublished_.clear();
  exited_ = std::vector<int>(blocks_);
  waited_ = std::vector<bool>(blocks_);
  passed_ = std::vector<bool>(threads);
  touched_ = std::vector<bool>(threads);
  units_.clear();
  prefetched_.clear();
  predecessor_ended_ = !dependent_;
  bulk_.clear();
  int idle = 0, round = 0;
  while (error_.empty()) {
    bool all_done = bulk_.empty();
    progress_ = false;
    if (round++ % 40 == 0) fall_asleep();
    if (idle > 40) awake_ = first_asleep_;  // all others may be waiting for who sleeps
    for (int turn = 0; turn < threads / lanes; ++turn) {
      const int warp = random_() % (threads / lanes);
      if (asleep(warp)) continue;
      for (int i = 0; i < lanes && error_.empty(); ++i) {
        if (!fibers_[warp * lanes + i].done) resume(warp * lanes + i);
      }
    }
    running_ = -1;
    for (const bool waited : waited_) {
      if (waited && !predecessor_ended_ && random_() % 8 == 0) predecessor_ended_ = progress_ = true;
    }
    land(bulk_, false);
    partial_sums_.land_some(random_);
    for (auto& [type, unit] : units_) progress_ = unit->advance(random_()) || progress_;
    for (auto& queue : queues_) {
      land(queue, true);
      all_done = all_done && queue.empty();
    }
    for (const Fiber& fiber : fibers_) all_done = all_done && fiber.done;
    if (all_done) {
      for (auto& [type, unit] : units_) {
        if (!unit->idle()) error_ = "threads left with products under way";
      }
      break;
    }
    // Random turns may miss the one warp that can go on; a hundred rounds do not.
    idle = progress_ ? 0 : idle + 1;
    if (idle > 100 + 20 * threads / lanes) error_ = "deadlock";
  }
  for (const bool waited : waited_) {
    if (error_.empty() && dependent_ && !waited) {
      error_ = "a thread block left that never waited for the kernel in front";
    }
  }
  partial_sums_.land_all();
  if (error_.empty() && !prefetched_.empty()) error_ = "prefetch: more often than copied afterwards";
  current() = nullptr;
  if (!error_.empty()) throw std::runtime_error(error_);
}

}  // namespace emulation
