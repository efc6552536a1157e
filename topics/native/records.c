/* Splits the records of one batch (format v2, https://kafka.apache.org/documentation/#recordbatch) into columns. */
#include "kernels.h"

typedef struct { const uint8_t *data; int64_t at, end; } Cursor;

/* A zigzag varint of up to 64 bits; 0 when it passes the end, has none, or is longer. */
static int varint(Cursor *c, int64_t *out) {
    uint64_t value = 0;
    for (int shift = 0; shift <= 63; shift += 7) {
        if (c->at >= c->end) return 0;
        uint8_t byte = c->data[c->at++];
        if (shift == 63 && byte > 1) return 0;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            *out = (int64_t)(value >> 1) ^ -(int64_t)(value & 1);
            return 1;
        }
    }
    return 0;
}

/* Bytes with their length before them; a length below 0 is null. */
static int bytes(Cursor *c, int64_t *at, int64_t *size) {
    if (!varint(c, size)) return 0;
    *at = c->at;
    if (*size < 0) { *size = -1; return 1; }
    if (*size > c->end - c->at) return 0;
    c->at += *size;
    return 1;
}

/* One record, whose end is already known; its offset is `least` or more after the base, and less than `offsets`. */
static int record(Cursor *c, int64_t row[8], int64_t base_offset, int64_t least, int64_t offsets, int64_t first_ms) {
    int64_t delta_ms, offset, headers, skipped_at, skipped;
    if (c->at >= c->end) return 0;
    c->at++; /* attributes, unused */
    if (!varint(c, &delta_ms) || !varint(c, &offset) || offset < least || offset >= offsets) return 0;
    if (!bytes(c, &row[2], &row[3]) || !bytes(c, &row[4], &row[5])) return 0;
    row[0] = (int64_t)((uint64_t)base_offset + (uint64_t)offset);
    row[1] = (int64_t)((uint64_t)first_ms + (uint64_t)delta_ms);
    row[6] = c->at;
    if (!varint(c, &headers) || headers < 0) return 0;
    for (int64_t i = 0; i < headers; i++)
        if (!bytes(c, &skipped_at, &skipped) || !bytes(c, &skipped_at, &skipped)) return 0;
    row[7] = headers ? c->at - row[6] : 0;
    return c->at == c->end;
}

/* Up to `count` records of `size` bytes, as columns of `count` each: offset, time, and place and size of key, value and
   headers (with their count before them). `base` is added to places. The batch has the `offsets` offsets from
   `base_offset` on, which its records bear in ascending order: brokers do not check it. Returns how many were read; what
   follows the first that makes no sense is not looked at. */
int64_t sw_records(const uint8_t *data, int64_t size, int64_t count, int64_t base, int64_t base_offset, int64_t offsets,
                   int64_t first_ms, int64_t *columns) {
    Cursor all = {data, 0, size};
    int64_t least = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t length, row[8];
        if (!varint(&all, &length) || length < 0 || length > size - all.at) return i;
        Cursor one = {data, all.at, all.at + length};
        if (!record(&one, row, base_offset, least, offsets, first_ms)) return i;
        least = (int64_t)((uint64_t)row[0] - (uint64_t)base_offset) + 1;
        all.at = one.end;
        row[2] += base; row[4] += base; row[6] += base;
        for (int column = 0; column < 8; column++) columns[column * count + i] = row[column];
    }
    return count;
}

/* The first value of header `name` in each of n records' headers, as `sw_records` finds them; of size -1 where it has none. */
void sw_header(const uint8_t *data, const int64_t *at, const int64_t *size, int64_t n, const uint8_t *name,
               int64_t name_size, int64_t *value_at, int64_t *value_size) {
    for (int64_t i = 0; i < n; i++) {
        value_at[i] = 0;
        value_size[i] = -1;
        if (size[i] <= 0) continue;
        Cursor c = {data, at[i], at[i] + size[i]};
        int64_t count, found_at, found, place, length;
        if (!varint(&c, &count)) continue;
        for (; count > 0 && bytes(&c, &found_at, &found) && bytes(&c, &place, &length); count--)
            if (found == name_size && !memcmp(data + found_at, name, (size_t)name_size)) {
                value_at[i] = place;
                value_size[i] = length;
                break;
            }
    }
}
