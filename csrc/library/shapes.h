// From numbers of a configuration to the instance of a kernel that was compiled for them.
#pragma once

namespace secateur {

// Calls `use` with the one of Shapes that `fits`; false if there is none.
template <typename... Shapes, typename Fits, typename Use>
bool with_one_of(const Fits& fits, const Use& use) {
  return ((fits(Shapes{}) && (use(Shapes{}), true)) || ...);
}

// Of shapes with row_tiles and token_tiles.
template <typename... Shapes, typename Use>
bool with_tiles(int row_tiles, int token_tiles, const Use& use) {
  return with_one_of<Shapes...>(
      [&](auto shape) {
        using S = decltype(shape);
        return row_tiles == S::row_tiles && token_tiles == S::token_tiles;
      },
      use);
}

}  // namespace secateur
