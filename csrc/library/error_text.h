#pragma once

namespace secateur {

// For codes of SecateurError, which are zero or negative.
const char* own_error_text(int code);

}  // namespace secateur
