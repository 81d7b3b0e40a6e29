// csrc/include/secateur/write_block.h on one emulated warp.
#include "secateur/write_block.h"

#include "emulated/run.h"
#include "library/linear_arguments.h"

namespace {

using namespace secateur;

// The accumulators of m16n8 as the PTX manual has them.
template <typename Value, int RowTiles, int TokenTiles>
void write(const SecateurLinear& a, int first_tile, int first_token, const float* sums,
           emulation::Machine& machine) {
  const Output output = output_of(a);
  machine.run(0, [&] {
    const int lane = device::lane();
    float mine[RowTiles][TokenTiles][4];
    for (int r = 0; r < RowTiles; ++r) {
      for (int n = 0; n < TokenTiles; ++n) {
        for (int i = 0; i < 4; ++i) {
          const int row = 16 * r + lane / 4 + (i < 2 ? 0 : 8);
          const int token = 8 * n + 2 * (lane % 4) + i % 2;
          mine[r][n][i] = sums[row * 8 * TokenTiles + token];
        }
      }
    }
    write_block<Value, RowTiles, TokenTiles>(output, first_tile, first_token, mine);
  });
}

}  // namespace

// `sums`: [16 * row tiles, 8 * token tiles]. 1: see emulation_message.
extern "C" int emulate_write_block(const SecateurLinear* a, int row_tiles, int token_tiles,
                                   int first_tile, int first_token, const float* sums) {
  return emulation::guarded([&] {
    emulation::Machine machine(warp_lanes, 0, 1);
    emulation::allow_linear(*a, machine);
    const auto run = [&](auto rows, auto tokens) {
      constexpr int r = decltype(rows)::value, n = decltype(tokens)::value;
      if (row_tiles != r || token_tiles != n) return;
      const bool bf16 = a->value_type == SECATEUR_BF16;
      const auto write_type = bf16 ? write<Bf16, r, n> : write<Fp16, r, n>;
      write_type(*a, first_tile, first_token, sums, machine);
    };
    using std::integral_constant;
    const auto run_rows = [&](auto rows) {
      run(rows, integral_constant<int, 1>{});
      run(rows, integral_constant<int, 3>{});
      run(rows, integral_constant<int, 4>{});
      run(rows, integral_constant<int, 8>{});
    };
    run_rows(integral_constant<int, 1>{});
    run_rows(integral_constant<int, 2>{});
    run_rows(integral_constant<int, 4>{});
  });
}
