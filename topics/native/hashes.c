/* Hashes of many strings: Kafka's partitioner, and the 128 bits by which an id is remembered. */
#include "kernels.h"

static inline uint64_t rotated(uint64_t x, int by) { return x << by | x >> (64 - by); }

static inline uint64_t finished(uint64_t k) {
    k ^= k >> 33; k *= 0xFF51AFD7ED558CCDu;
    k ^= k >> 33; k *= 0xC4CEB9FE1A85EC53u;
    return k ^ k >> 33;
}

/* murmur2 as Java's org.apache.kafka.common.utils.Utils has it. */
static uint32_t murmur2(const uint8_t *p, int64_t size) {
    const uint32_t m = 0x5BD1E995u;
    uint32_t h = 0x9747B28Cu ^ (uint32_t)size;
    for (; size >= 4; p += 4, size -= 4) {
        uint32_t k = load32(p) * m;
        k = (k ^ k >> 24) * m;
        h = h * m ^ k;
    }
    if (size) h = (h ^ (uint32_t)load_tail(p, size)) * m;
    h = (h ^ h >> 13) * m;
    return h ^ h >> 15;
}

/* The partition of each of n keys. */
void sw_partitions(const uint8_t *data, const int64_t *at, const int64_t *size, int64_t n, int64_t partitions,
                   int64_t *out) {
    for (int64_t i = 0; i < n; i++) out[i] = (murmur2(data + at[i], size[i]) & 0x7FFFFFFFu) % (uint32_t)partitions;
}

/* MurmurHash3_x64_128 with seed 0 (Austin Appleby, public domain). */
static void murmur3(const uint8_t *p, int64_t size, uint64_t out[2]) {
    const uint64_t c1 = 0x87C37B91114253D5u, c2 = 0x4CF5AD432745937Fu;
    uint64_t a = 0, b = 0, length = (uint64_t)size;
    for (; size >= 16; p += 16, size -= 16) {
        a ^= rotated(load64(p) * c1, 31) * c2;
        a = (rotated(a, 27) + b) * 5 + 0x52DCE729u;
        b ^= rotated(load64(p + 8) * c2, 33) * c1;
        b = (rotated(b, 31) + a) * 5 + 0x38495AB5u;
    }
    if (size > 8) b ^= rotated(load_tail(p + 8, size - 8) * c2, 33) * c1;
    if (size) a ^= rotated((size >= 8 ? load64(p) : load_tail(p, size)) * c1, 31) * c2;
    a ^= length; b ^= length;
    a += b; b += a;
    a = finished(a); b = finished(b);
    a += b; b += a;
    out[0] = a; out[1] = b;
}

/* The 128-bit digest of each of n strings, 16 bytes each. */
void sw_digests(const uint8_t *data, const int64_t *at, const int64_t *size, int64_t n, uint64_t *out) {
    for (int64_t i = 0; i < n; i++) murmur3(data + at[i], size[i], out + 2 * i);
}
