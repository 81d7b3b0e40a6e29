// What the tests ask after a call.
#include <utility>

#include "emulated/run.h"
#include "library/error_text.h"

std::string& emulation::message() {
  static std::string text;
  return text;
}

extern "C" {
const char* emulation_message() { return emulation::message().c_str(); }
// Bytes asked for into the L2 cache since the last question.
int64_t emulation_prefetched_bytes() {
  return std::exchange(emulation::Machine::prefetched_bytes(), 0);
}
const char* secateur_error_text(int code) { return secateur::own_error_text(code); }
}
