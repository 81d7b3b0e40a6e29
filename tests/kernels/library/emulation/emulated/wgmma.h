// secateur/device/wgmma.h on a CPU, after the PTX manual's description of wgmma.mma_async.sp.
//
// Products are deferred: a thread only leaves the addresses of its registers, and at some time
// between then and the wait that covers it, the product reads registers and shared memory as they
// are at that time. Sums are poison until that wait. What a GPU would not say is reported:
// registers that change while a product may read or write them, missing fences,
// warps that disagree.
#pragma once

#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "emulated/device.h"
#include "emulated/machine.h"
#include "emulated/sparse_product.h"

namespace secateur::device {

constexpr bool has_warpgroups = true;
constexpr int warpgroup_lanes = 128;

// What a thread brings to a product.
struct Registers128 {
  float* sums;
  const Words4* values;
  const uint32_t* metadata;
  Words4 values_then;
  uint32_t metadata_then;

  bool unchanged() const {
    return std::memcmp(values, &values_then, sizeof(Words4)) == 0 && *metadata == metadata_then;
  }
};

struct Product {
  int token_tiles;
  bool bf16;
  int selector;
  uint64_t tokens;
  int joined = 0;
  Registers128 lanes[warpgroup_lanes];

  bool same(const Product& other) const {
    return token_tiles == other.token_tiles && bf16 == other.bf16 && selector == other.selector &&
           tokens == other.tokens;
  }
};

// Sums that products will change: the numbers themselves are here, poison in the registers.
struct HeldSums {
  std::vector<float> real;
  size_t last_product;
};

struct WarpgroupThread {
  size_t issued = 0;   // products
  size_t checked = 0;  // of them, whose registers were seen unchanged behind a wait
  std::vector<size_t> groups;  // products at each commit
  std::map<float*, HeldSums> held;
};

struct Warpgroup {
  std::deque<Product> products;
  size_t executed = 0;
  std::vector<size_t> groups;
};

class TensorCores : public emulation::Unit {
 public:
  explicit TensorCores(Machine& m) : machine_(m) {}

  WarpgroupThread& thread() { return threads_[machine_.running()]; }
  Warpgroup& warpgroup() { return warpgroups_[machine_.running() / warpgroup_lanes]; }

  void issue(const Product& product, const Registers128& registers);
  void commit();
  void wait(size_t pending);
  void require_owned(float* sums) {
    if (thread().held.count(sums)) machine_.fail("sums are used while products are under way");
  }

  bool advance(uint64_t random) override;
  bool idle() const override {
    for (const auto& [index, group] : warpgroups_) {
      if (group.executed < group.products.size()) return false;
    }
    return true;
  }

 private:
  void execute(int index, Product& product);

  Machine& machine_;
  std::map<int, WarpgroupThread> threads_;
  std::map<int, Warpgroup> warpgroups_;
};

inline void TensorCores::issue(const Product& product, const Registers128& registers) {
  WarpgroupThread& self = thread();
  Warpgroup& group = warpgroup();
  if (machine_.registers_touched()) machine_.fail("wgmma: no fence behind the last access");
  const size_t number = self.issued++;
  if (number == group.products.size()) group.products.push_back(product);
  Product& shared = group.products[number];
  if (!shared.same(product)) machine_.fail("wgmma: warps of a warpgroup disagree");
  shared.lanes[machine_.running() % warpgroup_lanes] = registers;
  const size_t items = 4 * product.token_tiles;
  HeldSums& held = self.held[registers.sums];
  if (held.real.empty()) {
    held.real.assign(registers.sums, registers.sums + items);
    std::memset(registers.sums, emulation::poison, 4 * items);
  } else if (held.real.size() != items) {
    machine_.fail("wgmma: products of different shapes on the same sums");
  }
  held.last_product = number;
  ++shared.joined;
  machine_.advance();
}

inline void TensorCores::commit() {
  WarpgroupThread& self = thread();
  Warpgroup& group = warpgroup();
  self.groups.push_back(self.issued);
  if (self.groups.size() > group.groups.size()) group.groups.push_back(self.issued);
  if (group.groups[self.groups.size() - 1] != self.issued) {
    machine_.fail("wgmma: warps of a warpgroup commit different products");
  }
}

inline void TensorCores::wait(size_t pending) {
  WarpgroupThread& self = thread();
  if (self.groups.size() <= pending) return;
  const size_t target = self.groups[self.groups.size() - pending - 1];
  while (warpgroup().executed < target) machine_.yield();
  // The end of a product is a fence between proxies as well.
  if (self.checked < target) machine_.fence_before_copies();
  for (; self.checked < target; ++self.checked) {
    const auto& lane = warpgroup().products[self.checked].lanes[machine_.running() % 128];
    if (!lane.unchanged()) machine_.fail("wgmma: registers changed before the wait");
  }
  for (auto held = self.held.begin(); held != self.held.end();) {
    if (held->second.last_product >= target) {
      ++held;
      continue;
    }
    const std::vector<float>& real = held->second.real;
    const std::vector<uint8_t> expected(4 * real.size(), emulation::poison);
    if (std::memcmp(held->first, expected.data(), expected.size()) != 0) {
      machine_.fail("wgmma: sums changed before the wait");
    }
    std::memcpy(held->first, real.data(), 4 * real.size());
    held = self.held.erase(held);
    machine_.touch_registers();
  }
}

inline bool TensorCores::advance(uint64_t random) {
  bool progress = false;
  for (auto& [index, group] : warpgroups_) {
    for (; group.executed < group.products.size(); ++group.executed, random /= 3) {
      Product& product = group.products[group.executed];
      if (product.joined < warpgroup_lanes || random % 3 == 0) break;
      execute(index, product);
      progress = true;
    }
    random /= 3;
  }
  return progress;
}

// A, 64 rows: warp w has rows 16w to 16w + 15 in the fragment of mma.sp.m16n8k32, with metadata
// alike. B: 32 x n, where the descriptor says. D: warp w, rows 16w + q + 8 * h, columns 8j + 2t + e
// in item 4j + 2h + e of lane 4q + t.
inline void TensorCores::execute(int index, Product& product) {
  const int rank = index * warpgroup_lanes / machine_.threads();
  const int tokens = 8 * product.token_tiles;
  const std::vector<float> b =
      read_tokens(machine_, rank, product.tokens, tokens, product.bf16);
  std::vector<float> row_sums(tokens);
  for (int warp = 0; warp < 4; ++warp) {
    const Registers128* lanes = product.lanes + 32 * warp;
    for (int lane = 0; lane < 32; ++lane) {
      if (!lanes[lane].unchanged()) machine_.fail("wgmma: registers changed under a product");
    }
    for (int row = 0; row < 16; ++row) {
      const auto real = [&](int token) -> float& {
        const int lane = 4 * (row % 8) + token % 8 / 2, item = 4 * (token / 8) + 2 * (row / 8);
        const int thread = index * warpgroup_lanes + 32 * warp + lane;
        return threads_[thread].held[lanes[lane].sums].real[item + token % 2];
      };
      for (int n = 0; n < tokens; ++n) row_sums[n] = real(n);
      add_sparse_row(machine_, row, product.selector, product.bf16, lanes, b, row_sums);
      for (int n = 0; n < tokens; ++n) real(n) = row_sums[n];
    }
  }
}

inline TensorCores& tensor_cores() { return machine().unit<TensorCores>(); }

template <int Count>
void give_registers() {}
template <int Count>
void take_registers() {}

inline void wgmma_fence() { machine().fence_registers(); }
inline void wgmma_commit() { tensor_cores().commit(); }
template <int Pending>
void wgmma_wait() {
  tensor_cores().wait(Pending);
}
template <int TokenTiles>
void own(float (&sums)[TokenTiles][4]) {
  tensor_cores().require_owned(&sums[0][0]);
}

template <typename Value>
constexpr bool is_bf16 = false;
template <>
inline constexpr bool is_bf16<Bf16> = true;

template <typename Value, int Selector, int TokenTiles>
void wgmma_sparse(float (&sums)[TokenTiles][4], const Words4& values, const uint32_t& metadata,
                  uint64_t tokens) {
  Product product{};
  product.token_tiles = TokenTiles;
  product.bf16 = is_bf16<Value>;
  product.selector = Selector;
  product.tokens = tokens;
  tensor_cores().issue(product, {&sums[0][0], &values, &metadata, values, metadata});
}

}  // namespace secateur::device
