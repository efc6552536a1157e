/* Rows grouped by a number: which group each is of, what the rows of a group add up to, and their values by turns. */
#include <stdlib.h>

#include "kernels.h"

/* Numbers n keys by their first appearance: out[i] is the group of row i, distinct[g] the key of group g. Both have room
   for n. `slots` has slot_count entries, a power of two above n, all 0. Returns the number of groups. */
int64_t sw_groups(const int64_t *keys, int64_t n, int32_t *slots, int64_t slot_count, int64_t *out, int64_t *distinct) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        uint64_t at = ((uint64_t)keys[i] * 0x9E3779B97F4A7C15u) >> 20 & (uint64_t)(slot_count - 1);
        while (slots[at] && distinct[slots[at] - 1] != keys[i]) at = (at + 1) & (uint64_t)(slot_count - 1);
        if (!slots[at]) {
            distinct[count++] = keys[i];
            slots[at] = (int32_t)count;
        }
        out[i] = slots[at] - 1;
    }
    return count;
}

/* Adds n rows to the sums of their groups: sums is 6 columns of `groups`, all 0: requests, errors, bytes, microseconds,
   requests with a time, longest time in microseconds. A size below 0 or a time that is no number is absent. Bytes that
   add up to more than INT64_MAX stay there; the other sums stay below it whatever the rows are. */
void sw_sums(const int64_t *group, const int64_t *status, const int64_t *size, const int64_t *us, int64_t n,
             int64_t groups, int64_t *sums) {
    for (int64_t i = 0; i < n; i++) {
        int64_t *sum = sums + group[i];
        sum[0] += 1;
        sum[groups] += status[i] >= 500;
        if (size[i] > 0) {
            uint64_t bytes = (uint64_t)sum[2 * groups] + (uint64_t)size[i];
            sum[2 * groups] = bytes > INT64_MAX ? INT64_MAX : (int64_t)bytes;
        }
        if (us[i] < 0) continue;
        sum[3 * groups] += us[i];
        sum[4 * groups] += 1;
        if (us[i] > sum[5 * groups]) sum[5 * groups] = us[i];
    }
}

/* Deals values >= 0 out to their groups, in order; next[g] is where the next value of group g goes. NaN is absent. */
void sw_deal(const int64_t *group, const double *values, int64_t n, int64_t *next, float *out) {
    for (int64_t i = 0; i < n; i++)
        if (values[i] >= 0) out[next[group[i]]++] = (float)values[i];
}
