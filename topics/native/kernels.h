/* The kernels of the hot path: columns in, columns out.

   Every function takes pointers to arrays that the caller made and that it alone uses, and their lengths. None keeps a
   pointer after it returns, none reads a byte outside the data it was given, whatever that data holds, and only `words`
   allocate. Rows are named by int64 indices; a string is a place (`at`) and a size in a buffer; a size below 0 is an
   absent string. The wrappers in `__init__.py` say what each array must look like. */
#ifndef SLUICEWAY_KERNELS_H
#define SLUICEWAY_KERNELS_H

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels read words as little-endian"
#endif

static inline uint64_t load64(const uint8_t *p) { uint64_t word; memcpy(&word, p, 8); return word; }
static inline uint32_t load32(const uint8_t *p) { uint32_t word; memcpy(&word, p, 4); return word; }

/* The last `size` < 8 bytes of a string as a word. */
static inline uint64_t load_tail(const uint8_t *p, int64_t size) {
    uint64_t word = 0;
    for (int64_t i = 0; i < size; i++) word |= (uint64_t)p[i] << (8 * i);
    return word;
}

#endif
