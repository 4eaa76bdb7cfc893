#include <omp.h>

#include "probe.h"

/* Bumped whenever a signature changes, so that an old library is refused instead of crashing. */
int sd_version(void) { return 1; }

int sd_max_threads(void) { return omp_get_max_threads(); }
