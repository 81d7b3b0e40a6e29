// What secateur_unpack24 accepts: no CUDA in here.
#include "library/linear_arguments.h"
#include "secateur/core/unpack24.h"

using secateur::aligned;

int secateur_unpack24_check(const SecateurUnpack24* a) {
  if (a == nullptr || a->weight == nullptr || a->dense == nullptr) return SECATEUR_NULL_POINTER;
  if (a->rows < 1 || a->columns < 4 || a->columns % 4 != 0 || a->rows > secateur::max_size ||
      a->columns > secateur::max_size) {
    return SECATEUR_BAD_SHAPE;
  }
  if (a->gate_up && a->rows % 16 != 0) return SECATEUR_BAD_ROW_ORDER;
  if (!aligned(a->weight, 16) || !aligned(a->dense, a->columns % 8 == 0 ? 16 : 8)) {
    return SECATEUR_MISALIGNED;
  }
  return SECATEUR_OK;
}
