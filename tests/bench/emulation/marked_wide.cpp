// The emulated wide kernel, with marks.
#include "passed_points.h"
#include "wide.cpp"
