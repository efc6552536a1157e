/* Reads traffic events in their plain form, as nearly all are written, into columns.

   The authority on what an event is stays `topics.traffic.decode`. This reader takes a value only where that would take it,
   with the same fields; whatever it does not know (an escape, an exponent, a nested value, a key twice, anything invalid)
   it leaves to be looked at closely. */
#include "kernels.h"

enum { ID, METHOD, PATH, ADDRESS, AGENT, DIMENSIONS, TEXTS };
enum { TIMESTAMP, STATUS, BYTES, NUMBERS };
enum { PLAIN, UNKNOWN_ADDRESS, CLOSER_LOOK };

typedef struct {
    int64_t id_chars, short_chars, path_chars, agent_chars, dimensions, dimension_chars, timestamp_ms, bytes;
    double response_ms;
} Limits;

typedef struct { const uint8_t *p, *end; } Reader;

static const uint64_t ONES = 0x0101010101010101u, HIGHS = 0x8080808080808080u;

static inline uint64_t equal_bytes(uint64_t word, uint8_t byte) {
    uint64_t x = word ^ ONES * byte;
    return (x - ONES) & ~x & HIGHS;
}

/* The code points of valid UTF-8, -1 of any other. */
static int64_t code_points(const uint8_t *p, const uint8_t *end) {
    int64_t count = 0;
    for (; p < end; count++) {
        uint8_t lead = *p++;
        if (lead < 0x80) continue;
        int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
        if (lead < 0xC2 || lead > 0xF4 || end - p < more) return -1;
        uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
        uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        if (*p < low || *p > high) return -1;
        for (p++; --more; p++)
            if ((*p & 0xC0) != 0x80) return -1;
    }
    return count;
}

/* A string without escapes, from its opening quote on. Returns its code points, -1 when it is none. */
static int64_t string(Reader *r, const uint8_t **start, int64_t *size) {
    if (r->p >= r->end || *r->p != '"') return -1;
    const uint8_t *p = *start = r->p + 1;
    uint64_t high = 0;
    for (; r->end - p >= 8; p += 8) {
        uint64_t word = load64(p);
        uint64_t control = (word - ONES * 0x20) & ~word & HIGHS;
        uint64_t stop = equal_bytes(word, '"') | equal_bytes(word, '\\') | control;
        if (stop) {
            int at = __builtin_ctzll(stop) & ~7;
            if (at) high |= word << (64 - at) & HIGHS;
            p += at / 8;
            goto stopped;
        }
        high |= word & HIGHS;
    }
    for (; p < r->end && *p != '"' && *p != '\\' && *p >= 0x20; p++) high |= *p & 0x80;
stopped:
    if (p >= r->end || *p != '"') return -1;
    r->p = p + 1;
    *size = p - *start;
    return high ? code_points(*start, p) : *size;
}

static inline void blanks(Reader *r) {
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\t' || *r->p == '\r')) r->p++;
}

static inline int taken(Reader *r, uint8_t byte) {
    blanks(r);
    if (r->p >= r->end || *r->p != byte) return 0;
    r->p++;
    blanks(r);
    return 1;
}

static int word(Reader *r, const char *text, int64_t size) {
    if (r->end - r->p < size || memcmp(r->p, text, (size_t)size)) return 0;
    r->p += size;
    return 1;
}

static inline int digit(const Reader *r) { return r->p < r->end && *r->p >= '0' && *r->p <= '9'; }

/* At most 15 digits, without a leading zero; -1 for anything else. */
static int64_t natural(Reader *r) {
    const uint8_t *start = r->p;
    int64_t value = 0;
    for (; digit(r); r->p++) {
        if (r->p - start == 15) return -1;
        value = value * 10 + (*r->p - '0');
    }
    return r->p == start || (*start == '0' && r->p - start > 1) ? -1 : value;
}

/* What may follow a number in an object. */
static inline int number_ended(const Reader *r) {
    return r->p < r->end && (*r->p == ',' || *r->p == '}' || *r->p == ' ' || *r->p == '\n' || *r->p == '\t' || *r->p == '\r');
}

static int whole(Reader *r, int64_t most, int64_t *out) {
    *out = natural(r);
    return *out >= 0 && *out <= most && number_ended(r);
}

/* A decimal of at most 15 digits: both it and its power of ten are exact, so one division rounds as it must. */
static int decimal(Reader *r, double *out) {
    static const double power[] = {1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};
    const uint8_t *start = r->p;
    int64_t value = natural(r);
    if (value < 0) return 0;
    int64_t digits = r->p - start, places = 0;
    if (r->p < r->end && *r->p == '.') {
        for (r->p++; digit(r); r->p++, places++) {
            if (digits + places == 15) return 0;
            value = value * 10 + (*r->p - '0');
        }
        if (!places) return 0;
    }
    *out = (double)value / power[places];
    return number_ended(r);
}

/* A value of a field that is nobody's: a string, a plain number, true, false or null. */
static int skipped(Reader *r) {
    const uint8_t *start;
    int64_t size;
    double number;
    if (r->p >= r->end) return 0;
    switch (*r->p) {
    case '"': return string(r, &start, &size) >= 0;
    case 't': return word(r, "true", 4);
    case 'f': return word(r, "false", 5);
    case 'n': return word(r, "null", 4);
    case '-': r->p++; return decimal(r, &number);
    default: return decimal(r, &number);
    }
}

/* An object of strings. */
static int labels(Reader *r, const Limits *limits) {
    const uint8_t *start;
    int64_t size;
    if (!taken(r, '{')) return 0;
    if (r->p < r->end && *r->p == '}') { r->p++; return 1; }
    for (int64_t count = 1; count <= limits->dimensions; count++) {
        int64_t key = string(r, &start, &size);
        if (key < 1 || key > limits->short_chars || !taken(r, ':')) return 0;
        int64_t value = string(r, &start, &size);
        if (value < 0 || value > limits->dimension_chars) return 0;
        blanks(r);
        if (r->p >= r->end) return 0;
        if (*r->p == '}') { r->p++; return 1; }
        if (!taken(r, ',')) return 0;
    }
    return 0;
}

/* One event's columns, `n` apart. */
typedef struct { int64_t *at, *size, *number; double *response_ms; int64_t n; const uint8_t *data; } Out;

static int text(Reader *r, const Out *out, int column, int64_t least, int64_t most) {
    const uint8_t *start;
    int64_t size, chars = string(r, &start, &size);
    if (chars < least || chars > most) return 0;
    out->at[column * out->n] = start - out->data;
    out->size[column * out->n] = size;
    return 1;
}

/* Dotted quads without leading zeros. */
static int ipv4(const uint8_t *p, int64_t size) {
    const uint8_t *end = p + size;
    for (int octet = 0; octet < 4; octet++) {
        if (octet && (p >= end || *p++ != '.')) return 0;
        const uint8_t *start = p;
        int value = 0;
        while (p < end && *p >= '0' && *p <= '9' && p - start < 3) value = value * 10 + (*p++ - '0');
        if (p == start || value > 255 || (*start == '0' && p - start > 1)) return 0;
    }
    return p == end;
}

enum { SEEN_ID = 1, SEEN_TIME = 2, SEEN_METHOD = 4, SEEN_PATH = 8, SEEN_STATUS = 16, SEEN_ADDRESS = 32, NEEDED = 63,
       SEEN_RESPONSE = 64, SEEN_BYTES = 128, SEEN_AGENT = 256, SEEN_DIMENSIONS = 512 };

/* Reads the value of field `key`; its bit, 0 for nobody's, -1 when it is not plain. */
static int field(Reader *r, const uint8_t *key, int64_t size, const Out *out, const Limits *limits) {
#define IS(name) (size == sizeof name - 1 && !memcmp(key, name, sizeof name - 1))
    int64_t *number = out->number, n = out->n;
    if (IS("event_id")) return text(r, out, ID, 1, limits->id_chars) ? SEEN_ID : -1;
    if (IS("timestamp_ms")) return whole(r, limits->timestamp_ms, &number[TIMESTAMP * n]) ? SEEN_TIME : -1;
    if (IS("method")) return text(r, out, METHOD, 1, limits->short_chars) ? SEEN_METHOD : -1;
    if (IS("path")) return text(r, out, PATH, 1, limits->path_chars) ? SEEN_PATH : -1;
    if (IS("status"))
        return whole(r, 599, &number[STATUS * n]) && number[STATUS * n] >= 100 ? SEEN_STATUS : -1;
    if (IS("client_ip")) return text(r, out, ADDRESS, 0, INT64_MAX) ? SEEN_ADDRESS : -1;
    if (IS("response_time_ms")) {
        if (word(r, "null", 4)) return SEEN_RESPONSE;
        return decimal(r, out->response_ms) && *out->response_ms <= limits->response_ms ? SEEN_RESPONSE : -1;
    }
    if (IS("bytes")) {
        if (word(r, "null", 4)) return SEEN_BYTES;
        return whole(r, limits->bytes, &number[BYTES * n]) ? SEEN_BYTES : -1;
    }
    if (IS("user_agent")) {
        if (word(r, "null", 4)) return SEEN_AGENT;
        return text(r, out, AGENT, 0, limits->agent_chars) ? SEEN_AGENT : -1;
    }
    if (IS("dimensions")) {
        if (word(r, "null", 4)) return SEEN_DIMENSIONS;
        const uint8_t *start = r->p;
        if (!labels(r, limits)) return -1;
        out->at[DIMENSIONS * n] = start - out->data;
        out->size[DIMENSIONS * n] = r->p - start;
        return SEEN_DIMENSIONS;
    }
    return skipped(r) ? 0 : -1;
#undef IS
}

static int event(Reader r, const Out *out, const Limits *limits) {
    int seen = 0;
    if (!taken(&r, '{')) return CLOSER_LOOK;
    for (;;) {
        const uint8_t *key;
        int64_t size;
        if (string(&r, &key, &size) < 0 || !taken(&r, ':')) return CLOSER_LOOK;
        int bit = field(&r, key, size, out, limits);
        if (bit < 0 || seen & bit) return CLOSER_LOOK;
        seen |= bit;
        blanks(&r);
        if (r.p >= r.end) return CLOSER_LOOK;
        if (*r.p == '}') break;
        if (!taken(&r, ',')) return CLOSER_LOOK;
    }
    if (r.p + 1 != r.end || (seen & NEEDED) != NEEDED) return CLOSER_LOOK;
    return ipv4(out->data + out->at[ADDRESS * out->n], out->size[ADDRESS * out->n]) ? PLAIN : UNKNOWN_ADDRESS;
}

/* The events in n values. Columns of n each: `at` and `size` of the texts (id, method, path, address, agent, dimensions as
   they are written), `number` (timestamp, status, bytes), `response_ms`. What is absent: a size or bytes of -1, a time of
   NaN. look[i] says whether value i is plain, plain but for an address that is no IPv4, or to be looked at closely; then
   its columns mean nothing. */
void sw_events(const uint8_t *data, const int64_t *value_at, const int64_t *value_size, int64_t n, const Limits *limits,
               int64_t *at, int64_t *size, int64_t *number, double *response_ms, uint8_t *look) {
    for (int64_t i = 0; i < n; i++) {
        Out out = {at + i, size + i, number + i, response_ms + i, n, data};
        out.size[AGENT * n] = out.size[DIMENSIONS * n] = -1;
        out.number[BYTES * n] = -1;
        *out.response_ms = __builtin_nan("");
        const uint8_t *start = data + value_at[i];
        look[i] = value_size[i] > 0 ? event((Reader){start, start + value_size[i]}, &out, limits) : CLOSER_LOOK;
    }
}
