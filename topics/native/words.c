/* Dictionaries: strings numbered from 0 in the order in which they first came. */
#include <stdlib.h>

#include "kernels.h"

typedef struct {
    uint64_t seed;
    uint8_t *bytes;
    int64_t *ends;   /* ends[c] is where word c ends in `bytes` */
    uint64_t *marks; /* hash of each word */
    int32_t *slots;  /* code + 1, by hash */
    int64_t count, held_words, held_bytes, slot_count;
} Words;

static uint64_t mixed(uint64_t a, uint64_t b) {
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* A hash with a secret seed, so that nobody can choose strings that meet: codes do not depend on it. */
static uint64_t hash(const uint8_t *p, int64_t size, uint64_t seed) {
    uint64_t h = seed ^ mixed((uint64_t)size ^ 0xA0761D6478BD642Fu, 0xE7037ED1A0B428DBu);
    for (; size >= 8; p += 8, size -= 8) h = mixed(h ^ load64(p), 0x8EBC6AF09C88C6E3u ^ seed);
    if (size) h = mixed(h ^ load_tail(p, size), 0x589965CC75374CC3u ^ seed);
    return h ^ h >> 32;
}

void sw_words_free(Words *w) {
    if (!w) return;
    free(w->bytes); free(w->ends); free(w->marks); free(w->slots); free(w);
}

Words *sw_words_new(uint64_t seed) {
    Words *w = calloc(1, sizeof *w);
    if (!w) return NULL;
    *w = (Words){.seed = seed, .held_words = 64, .held_bytes = 1024, .slot_count = 128};
    w->bytes = malloc(1024);
    w->ends = malloc(64 * sizeof *w->ends);
    w->marks = malloc(64 * sizeof *w->marks);
    w->slots = calloc(128, sizeof *w->slots);
    if (w->bytes && w->ends && w->marks && w->slots) return w;
    sw_words_free(w);
    return NULL;
}

static int roomier(void **array, int64_t bytes) {
    void *grown = realloc(*array, (size_t)bytes);
    if (grown) *array = grown;
    return grown != NULL;
}

static int rehashed(Words *w) {
    int64_t slot_count = 2 * w->slot_count;
    int32_t *slots = calloc((size_t)slot_count, sizeof *slots);
    if (!slots) return 0;
    for (int64_t code = 0; code < w->count; code++) {
        uint64_t at = w->marks[code] & (uint64_t)(slot_count - 1);
        while (slots[at]) at = (at + 1) & (uint64_t)(slot_count - 1);
        slots[at] = (int32_t)code + 1;
    }
    free(w->slots);
    w->slots = slots;
    w->slot_count = slot_count;
    return 1;
}

/* Make room for one more word of `size` bytes. */
static int reserved(Words *w, int64_t size) {
    int64_t used = w->count ? w->ends[w->count - 1] : 0;
    if (used + size > INT32_MAX) return 0; /* `sw_words_copy` names places by int32, as Arrow does */
    if (used + size > w->held_bytes) {
        int64_t wanted = 2 * (used + size);
        if (!roomier((void **)&w->bytes, wanted)) return 0;
        w->held_bytes = wanted;
    }
    if (w->count == w->held_words) {
        int64_t wanted = 2 * w->held_words;
        if (wanted > INT32_MAX || !roomier((void **)&w->ends, wanted * 8) || !roomier((void **)&w->marks, wanted * 8))
            return 0;
        w->held_words = wanted;
    }
    return 2 * (w->count + 1) <= w->slot_count || rehashed(w);
}

static int32_t code_of(Words *w, const uint8_t *p, int64_t size) {
    uint64_t mark = hash(p, size, w->seed), at = mark & (uint64_t)(w->slot_count - 1);
    for (int32_t slot; (slot = w->slots[at]); at = (at + 1) & (uint64_t)(w->slot_count - 1)) {
        int32_t code = slot - 1;
        if (w->marks[code] != mark) continue;
        int64_t start = code ? w->ends[code - 1] : 0;
        if (w->ends[code] - start == size && !memcmp(w->bytes + start, p, (size_t)size)) return code;
    }
    if (!reserved(w, size)) return -2;
    at = mark & (uint64_t)(w->slot_count - 1);
    while (w->slots[at]) at = (at + 1) & (uint64_t)(w->slot_count - 1);
    int64_t used = w->count ? w->ends[w->count - 1] : 0;
    memcpy(w->bytes + used, p, (size_t)size);
    w->ends[w->count] = used + size;
    w->marks[w->count] = mark;
    w->slots[at] = (int32_t)w->count + 1;
    return (int32_t)w->count++;
}

/* The code of each of n strings, -1 for an absent one; new ones get the next. Returns 0 when memory is full. */
int32_t sw_words_codes(Words *w, const uint8_t *data, const int64_t *at, const int64_t *size, int64_t n, int32_t *out) {
    for (int64_t i = 0; i < n; i++) {
        out[i] = size[i] < 0 ? -1 : code_of(w, data + at[i], size[i]);
        if (out[i] == -2) return 0;
    }
    return 1;
}

int64_t sw_words_count(const Words *w) { return w->count; }

int64_t sw_words_bytes(const Words *w) { return w->count ? w->ends[w->count - 1] : 0; }

/* All words end to end, and where each begins and the last ends. */
void sw_words_copy(const Words *w, uint8_t *bytes, int32_t *offsets) {
    memcpy(bytes, w->bytes, (size_t)sw_words_bytes(w));
    offsets[0] = 0;
    for (int64_t i = 0; i < w->count; i++) offsets[i + 1] = (int32_t)w->ends[i];
}

/* n strings end to end. */
void sw_gather(const uint8_t *data, const int64_t *at, const int64_t *size, int64_t n, uint8_t *out) {
    for (int64_t i = 0; i < n; i++) {
        memcpy(out, data + at[i], (size_t)size[i]);
        out += size[i];
    }
}
