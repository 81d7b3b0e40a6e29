// A cluster of thread blocks works on a group of tiles: `rows` tiles of rows that share x, times
// `tokens` tiles of tokens that share weights, times `steps` thread blocks that take a part each of
// the steps of a tile. This is a thread block's place in it: rows first, then tokens.
#pragma once

#include "secateur/common.h"
#include "secateur/tile_schedule.h"

namespace secateur::wide {

struct Cluster {
  int rows;
  int tokens;
  int steps;

  // Those that work on the same steps.
  SECATEUR_INLINE constexpr int team() const { return rows * tokens; }
  SECATEUR_INLINE constexpr int size() const { return team() * steps; }
  // How many share what they fetch with a thread block, itself included.
  SECATEUR_INLINE constexpr int mates() const { return rows + tokens - 1; }
};

struct Member {
  Cluster cluster;
  int index;  // of the cluster
  int rank;   // in it
  int row;
  int token;
  int step;

  SECATEUR_INLINE constexpr Member(const Cluster& cluster, int block, int rank)
      : cluster(cluster),
        index(block / cluster.size()),
        rank(rank),
        row(rank % cluster.rows),
        token(rank / cluster.rows % cluster.tokens),
        step(rank / cluster.team()) {}

  // The part of a segment that the thread block takes.
  SECATEUR_INLINE constexpr TileSegment own(const TileSegment& segment) const {
    if (cluster.steps == 1) return segment;
    const int count = segment.end - segment.first;
    return {segment.tile, segment.first + count * step / cluster.steps,
            segment.first + count * (step + 1) / cluster.steps};
  }

  // The rank of the thread block that has the same tile and the first steps, and of the first one
  // that has the same steps.
  SECATEUR_INLINE constexpr int first_of_tile() const { return rank - first_of_team(); }
  SECATEUR_INLINE constexpr int first_of_team() const { return step * cluster.team(); }

  // Those that share x, and those that share weights, as bits of their ranks.
  SECATEUR_INLINE constexpr uint16_t row_mates() const {
    const int first = first_of_team() + token * cluster.rows;
    return static_cast<uint16_t>(((1u << cluster.rows) - 1) << first);
  }
  SECATEUR_INLINE constexpr uint16_t token_mates() const {
    const int first = first_of_team() + row;
    uint32_t bits = 0;
    for (int t = 0; t < cluster.tokens; ++t) bits |= 1u << (first + t * cluster.rows);
    return static_cast<uint16_t>(bits);
  }
  // The rank of the i-th of those that share something with it, itself included.
  SECATEUR_INLINE constexpr int mate(int i) const {
    if (cluster.mates() == 1) return rank;
    const int first = first_of_team();
    if (i < cluster.rows) return first + i + token * cluster.rows;
    const int other = i - cluster.rows;
    return first + row + (other < token ? other : other + 1) * cluster.rows;
  }
};

}  // namespace secateur::wide
