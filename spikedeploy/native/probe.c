#include <omp.h>

#include "probe.h"

/* Bumped whenever a signature changes, so that an old library is refused instead of crashing. */
int sd_version(void) { return 4; }

int sd_max_threads(void) { return omp_get_max_threads(); }

/* 4: the processor runs x86-64-v4 (AVX-512), 3: x86-64-v3 (AVX2), 0: neither, or not known. */
int sd_level(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("x86-64-v4")) return 4;
    if (__builtin_cpu_supports("x86-64-v3")) return 3;
#endif
    return 0;
}
