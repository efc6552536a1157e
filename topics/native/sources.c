/* Which sources a library was built from: one of older sources takes other arguments. */
#include "kernels.h"

const char *sw_sources(void) { return SW_SOURCES; }
