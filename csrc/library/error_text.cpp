// What the library's own codes mean.
#include "library/error_text.h"

#include "secateur/core.h"

namespace secateur {

const char* own_error_text(int code) {
  switch (code) {
    case SECATEUR_OK:
      return "no error";
    case SECATEUR_NULL_POINTER:
      return "expected pointers to x, weight and y, got a null pointer";
    case SECATEUR_BAD_SHAPE:
      return "expected a weight [rows, columns] of at least one row and four columns, to 2**30, "
             "columns divisible by 4";
    case SECATEUR_BAD_TOKENS:
      return "expected 1 to 64 tokens";
    case SECATEUR_BAD_ROW_ORDER:
      return "expected rows divisible by 16 for row order gate_up";
    case SECATEUR_BAD_ACTIVATION:
      return "expected row order gate_up for silu_and_mul";
    case SECATEUR_BAD_VALUE_TYPE:
      return "expected value type bf16 or fp16";
    case SECATEUR_BAD_TILES:
      return "expected 1 to 8 warps (to 4 with 4 row tiles and over 32 tokens) of 2 or 4 row "
             "tiles, together a multiple of 4 row tiles";
    case SECATEUR_BAD_STAGES:
      return "expected 2 to 16 stages";
    case SECATEUR_BAD_BLOCKS:
      return "expected 1 to row blocks * ceil(columns / 64) thread blocks";
    case SECATEUR_SMALL_WORKSPACE:
      return "the workspace is smaller than this configuration needs";
    case SECATEUR_FEW_COUNTERS:
      return "there are fewer counters than this configuration needs";
    case SECATEUR_MISALIGNED:
      return "a pointer is not aligned: weight, workspace 16 bytes, dense 16 or 8, counters 4, "
             "others 2";
    case SECATEUR_BAD_STRIDE:
      return "expected row strides of x and residual of at least 0";
    case SECATEUR_SHARED_MEMORY:
      return "the configuration needs more shared memory a thread block than this GPU has";
    case SECATEUR_BAD_CLUSTER:
      return "expected clusters of 1, 2, 4 or 8 thread blocks, a cluster a row block, a step of 64 "
             "columns or more a thread block, and stages that can hold its sums";
    case SECATEUR_NO_CLUSTERS:
      return "thread block clusters need a GPU of compute capability 9.0";
    case SECATEUR_BAD_TOKEN_COUNT:
      return "expected 1 to 2**30 tokens";
    case SECATEUR_BAD_TILE:
      return "expected tiles of 256 x 128, 128 x 128, 256 x 64 or 128 x 64 rows and tokens";
    case SECATEUR_BAD_TILE_STAGES:
      return "expected 2 to 8 stages";
    case SECATEUR_BAD_TILE_SCHEDULE:
      return "expected 1 to tiles * ceil(columns / 64) thread blocks, 0 to ceil(tiles / thread "
             "blocks) waves, groups of at least one row block, and fewer than 2**31 steps in all";
    case SECATEUR_MISALIGNED_X:
      return "expected rows of x that start at multiples of 16 bytes";
    case SECATEUR_BAD_WIDE_TILE:
      return "expected warpgroups x panels x tokens of 2 x 1 or 2 x 2 with 32, 64 or 128, 2 x 1 x "
             "256 or 3 x 1 x 192";
    case SECATEUR_BAD_WIDE_CLUSTER:
      return "expected clusters of 1, 2 or 4 tiles of rows by 1, 2 or 4 of tokens, to 8 in all";
    case SECATEUR_BAD_WIDE_SCHEDULE:
      return "expected whole clusters, 1 to groups of tiles * ceil(columns / 64) of them, 0 to "
             "ceil(groups / clusters) waves, at least one group side by side, and fewer than 2**31 "
             "steps in all";
    case SECATEUR_BAD_X_STRIDE:
      return "expected rows of x that do not overlap, less than 2**39 apart";
    case SECATEUR_NEEDS_SM90:
      return "this kernel needs a GPU of compute capability 9.0, and a library built for sm_90a";
    case SECATEUR_NO_TENSOR_MAP:
      return "the driver cannot describe a matrix to the tensor memory accelerator";
    case SECATEUR_BAD_GROUPS:
      return "expected 1 to 8 groups whose rows add up to those of the weight; one, or two equal "
             "ones, for gate_up and silu_and_mul; beside a 2:4 weight, multiples of 16 rows";
    case SECATEUR_BAD_RANK:
      return "expected a rank of at least 16, divisible by 16, of groups * rank to 2**30";
    case SECATEUR_BAD_LOW_RANK_TILES:
      return "expected 1 to 8 warps of 1 or 2 row tiles; 2 for over 16 tokens, and in the second "
             "kernel for gate_up and silu_and_mul; 8 warps of 1 to 4 row tiles for boxes, there 2 "
             "or 4";
    case SECATEUR_BAD_LOW_RANK_STAGES:
      return "expected 1 to 16 stages a warp; 2 to 16 of all warps for boxes";
    case SECATEUR_BAD_LOW_RANK_BLOCKS:
      return "expected K in 1 to 64 ranges, and 1 to row blocks thread blocks in the second kernel";
    case SECATEUR_BAD_WIDE_STEPS:
      return "expected the steps of 64 columns of a tile split among 1, 2, 4 or 8 thread blocks; "
             "above 1 with a step for each, clusters of 8 at most, whole tiles only, of 128 "
             "rows x 128 tokens or 256 x 64 at most";
    case SECATEUR_SMALL_WIDE_RING:
      return "expected as many stages as hold the sums of a tile whose steps are split";
    case SECATEUR_BAD_LOW_RANK_BOXES:
      return "expected up to 16 tokens, no 2:4 weight, no gate_up alone and, in the first kernel, "
             "rows of x and down that start at multiples of 16 bytes and do not overlap, for boxes";
    case SECATEUR_BAD_LOW_RANK_CLUSTER:
      return "expected boxes for clusters of 1, 2, 4 or 8 thread blocks, whole ones, and in the "
             "second kernel a row tile and eight tokens for each";
    case SECATEUR_BAD_LEAD:
      return "expected 0 or more steps as the lead of the next kernel";
    case SECATEUR_BAD_AHEAD:
      return "expected 0 to 1024 steps to ask for ahead of the ring, of low rank stages, and 0 "
             "without boxes";
    default:
      return "unknown error code";
  }
}

}  // namespace secateur
