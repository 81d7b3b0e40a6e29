// What the tests ask after a call.
#include "emulated/run.h"
#include "library/error_text.h"

std::string& emulation::message() {
  static std::string text;
  return text;
}

extern "C" {
const char* emulation_message() { return emulation::message().c_str(); }
const char* secateur_error_text(int code) { return secateur::own_error_text(code); }
}
