/* The C interface of the library: plain pointers and sizes, no torch. Every function that can fail
 * returns 0, a negative code of SecateurError, or a positive code of the CUDA runtime;
 * secateur_error_text explains all of them. Kernels are launched on the stream that is given and
 * nothing waits for them. Pointers are to memory of `device` unless said otherwise. */
#ifndef SECATEUR_CORE_H
#define SECATEUR_CORE_H

#include "secateur/core/linear.h"
#include "secateur/core/low_rank.h"
#include "secateur/core/sparse24_skinny.h"
#include "secateur/core/sparse24_tiles.h"
#include "secateur/core/sparse24_wide.h"
#include "secateur/core/status.h"
#include "secateur/core/unpack24.h"

#endif
