// What secateur_low_rank accepts and needs: no CUDA in here.
#include "low_rank/arguments.h"

#include <initializer_list>

using namespace secateur;
using namespace secateur::low_rank;

namespace {

constexpr int rank_step = 16;

// Tiles of gate rows and tiles of their up rows, side by side.
bool gate_up(const SecateurLowRank& a) { return a.linear.gate_up || a.linear.silu_and_mul; }

Division division_of(const SecateurLowRankDivision& division, int stage_bytes) {
  return {division.warps, division.stages, stage_bytes, division.ahead};
}

int check_layer(const SecateurLowRank& a) {
  SecateurLinear linear = a.linear;
  if (a.sparse == nullptr) linear.gate_up = linear.silu_and_mul = 0;
  if (const int error = check_shape(linear, a.sparse == nullptr ? 1 : 4, max_tokens)) return error;
  return gate_up(a) && a.linear.rows % 2 != 0 ? SECATEUR_BAD_ACTIVATION : SECATEUR_OK;
}

int check_groups(const SecateurLowRank& a) {
  if (a.groups < 1 || a.groups > max_groups || a.group_rows == nullptr) return SECATEUR_BAD_GROUPS;
  if (a.rank < 1 || a.rank % rank_step != 0 || a.groups * a.rank > max_size) {
    return SECATEUR_BAD_RANK;
  }
  int64_t rows = 0;
  for (int64_t group = 0; group < a.groups; ++group) {
    if (a.group_rows[group] < 0) return SECATEUR_BAD_GROUPS;
    rows += a.group_rows[group];
    // Packed tiles hold rows of one group.
    const bool inner = group + 1 < a.groups && !gate_up(a);
    if (a.sparse != nullptr && inner && rows % tile_rows != 0) return SECATEUR_BAD_GROUPS;
  }
  if (rows != a.linear.rows) return SECATEUR_BAD_GROUPS;
  if (!gate_up(a) || a.groups == 1) return SECATEUR_OK;
  return a.groups == 2 && a.group_rows[0] == a.group_rows[1] ? SECATEUR_OK : SECATEUR_BAD_GROUPS;
}

int check_division(const SecateurLowRankDivision& division, int64_t tokens, bool two_tiles) {
  const bool many = token_tiles(tokens) > 2;
  if (division.warps < 1 || division.warps > max_warps ||
      (division.row_tiles != 1 && division.row_tiles != 2) ||
      (division.row_tiles == 1 && (many || two_tiles))) {
    return SECATEUR_BAD_LOW_RANK_TILES;
  }
  return division.stages < 1 || division.stages > max_stages ? SECATEUR_BAD_LOW_RANK_STAGES
                                                             : SECATEUR_OK;
}

int check_boxes(const SecateurLowRankDivision& division, const SecateurLowRank& a) {
  if (division.boxes < 0) return SECATEUR_BAD_LOW_RANK_CLUSTER;
  const bool gate_up_only = a.linear.gate_up && !a.linear.silu_and_mul;
  if (a.linear.tokens > boxes::max_tokens || a.sparse != nullptr || gate_up_only) {
    return SECATEUR_BAD_LOW_RANK_BOXES;
  }
  const bool pairs = a.linear.silu_and_mul && &division == &a.up_division;
  if (division.warps != boxes::warps || division.row_tiles < 1 ||
      division.row_tiles > boxes::max_row_tiles || (pairs && division.row_tiles % 2 != 0)) {
    return SECATEUR_BAD_LOW_RANK_TILES;
  }
  // The second kernel takes turns: everyone has to wait for sums, so that nobody runs ahead.
  const int tiles = division.row_tiles * token_tiles(a.linear.tokens);
  const bool fits = (division.boxes & (division.boxes - 1)) == 0 &&
                    division.boxes <= max_cluster && division.blocks % division.boxes == 0 &&
                    (&division == &a.down_division || division.boxes <= tiles);
  if (!fits) return SECATEUR_BAD_LOW_RANK_CLUSTER;
  return division.stages < 2 || division.stages > max_stages ? SECATEUR_BAD_LOW_RANK_STAGES
                                                             : SECATEUR_OK;
}

int check_configuration(const SecateurLowRank& a) {
  if (const int error = check_layer(a)) return error;
  if (const int error = check_groups(a)) return error;
  const auto& down = a.down_division;
  const auto& up = a.up_division;
  const int64_t tokens = a.linear.tokens;
  for (const auto& division : {down, up}) {
    const int most = division.boxes ? max_ahead : 0;
    if (division.ahead < 0 || division.ahead > most) return SECATEUR_BAD_AHEAD;
  }
  if (const int error = down.boxes ? check_boxes(down, a) : check_division(down, tokens, false)) {
    return error;
  }
  if (const int error = up.boxes ? check_boxes(up, a) : check_division(up, tokens, gate_up(a))) {
    return error;
  }
  const bool splits_fit = a.down_division.blocks >= 1 && a.down_division.blocks <= max_splits;
  const bool blocks_fit = a.up_division.blocks >= 1 && a.up_division.blocks <= INT32_MAX;
  if (!splits_fit || !blocks_fit || down_blocks(a) > INT32_MAX) {
    return SECATEUR_BAD_LOW_RANK_BLOCKS;
  }
  // A 32-bit window: what no GPU has is refused before it is computed with.
  if (hidden_bytes(up_of(a)) > max_size) return SECATEUR_SHARED_MEMORY;
  return up_of(a).blocks <= up_of(a).row_blocks ? SECATEUR_OK : SECATEUR_BAD_LOW_RANK_BLOCKS;
}

bool down_is_aligned(const SecateurLowRank& a) {
  return aligned(a.down, 16) && a.linear.columns % 8 == 0;
}

bool takes_boxes_of_down(const SecateurLowRank& a) {
  const bool apart = a.linear.tokens == 1 || (a.linear.x_stride >= a.linear.columns &&
                                              a.linear.x_stride < int64_t{1} << 39);
  return x_is_aligned(a.linear) && apart && down_is_aligned(a);
}

int check_pointers(const SecateurLowRank& a) {
  if (a.down == nullptr || a.up == nullptr) return SECATEUR_NULL_POINTER;
  if (const int error = secateur::check_pointers(a.linear)) return error;
  const bool fits = aligned(a.down, 2) && aligned(a.up, 16) && aligned(a.sparse, 16) &&
                    aligned(a.workspace, 16);
  if (fits && a.down_division.boxes && !takes_boxes_of_down(a)) {
    return SECATEUR_BAD_LOW_RANK_BOXES;
  }
  return fits ? SECATEUR_OK : SECATEUR_MISALIGNED;
}

}  // namespace

Down secateur::low_rank::down_of(const SecateurLowRank& a) {
  Down d{};
  d.x = a.linear.x;
  d.weight = a.down;
  d.hidden = static_cast<float*>(a.workspace);
  d.x_stride = a.linear.x_stride;
  d.tokens = static_cast<int>(a.linear.tokens);
  d.rows = static_cast<int>(a.groups * a.rank);
  d.columns = static_cast<int>(a.linear.columns);
  d.x_aligned = x_is_aligned(a.linear);
  d.weight_aligned = down_is_aligned(a);
  d.splits = static_cast<int>(a.down_division.blocks);
  const int row_tiles = a.down_division.row_tiles;
  d.division = division_of(a.down_division,
                           a.down_division.boxes
                               ? boxes::down_stage_bytes(row_tiles, token_tiles(d.tokens))
                               : down_stage_bytes(row_tiles, d.tokens));
  return d;
}

Up secateur::low_rank::up_of(const SecateurLowRank& a) {
  Up u{};
  u.weight = a.up;
  u.hidden = static_cast<const float*>(a.workspace);
  u.rank = static_cast<int>(a.rank);
  u.hidden_columns = static_cast<int>(a.groups * a.rank);
  u.splits = static_cast<int>(hidden_sums(a));
  u.groups = static_cast<int>(a.groups);
  u.output = output_of(a.linear);
  u.output.gate_up = gate_up(a);
  int64_t end = 0;
  for (int group = 0; group < u.groups; ++group) {
    end += a.group_rows[group];
    u.group_end[group] = static_cast<int>(end);
    // Rows of a group begin at pairs of columns as well.
    u.output.paired = u.output.paired && (end % 2 == 0 || gate_up(a) || group + 1 == u.groups);
  }
  // And up rows where they are columns of their own.
  if (gate_up(a) && !a.linear.silu_and_mul) {
    u.output.paired = u.output.paired && u.output.rows / 2 % 2 == 0;
  }
  u.sparse = static_cast<const uint8_t*>(a.sparse);
  u.x = a.linear.x;
  u.x_stride = a.linear.x_stride;
  u.columns = static_cast<int>(a.linear.columns);
  u.x_aligned = x_is_aligned(a.linear);
  u.row_blocks = row_blocks(u, a.up_division.row_tiles);
  u.blocks = static_cast<int>(a.up_division.blocks / cluster_of(a.up_division));
  const int row_tiles = a.up_division.row_tiles;
  u.division = division_of(
      a.up_division, a.up_division.boxes
                         ? boxes::up_stage_bytes(row_tiles)
                         : up_stage_bytes(row_tiles, token_tiles(a.linear.tokens),
                                          a.sparse != nullptr));
  return u;
}

int secateur_low_rank_needs(const SecateurLowRank* a, SecateurLowRankNeeds* needs) {
  if (a == nullptr || needs == nullptr) return SECATEUR_NULL_POINTER;
  if (const int error = check_configuration(*a)) return error;
  needs->workspace_bytes = hidden_sums(*a) * a->linear.tokens * a->groups * a->rank * 4;
  needs->down_shared_bytes = down_shared_bytes(*a);
  needs->up_shared_bytes = up_shared_bytes(*a);
  return SECATEUR_OK;
}

int secateur_low_rank_check(const SecateurLowRank* a) {
  SecateurLowRankNeeds needs;
  if (const int error = secateur_low_rank_needs(a, &needs)) return error;
  if (const int error = check_pointers(*a)) return error;
  const bool enough = a->workspace != nullptr && a->workspace_bytes >= needs.workspace_bytes;
  return enough ? SECATEUR_OK : SECATEUR_SMALL_WORKSPACE;
}
