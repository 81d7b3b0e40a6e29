// The emulated skinny kernel, with marks.
#include "passed_points.h"
#include "skinny.cpp"
